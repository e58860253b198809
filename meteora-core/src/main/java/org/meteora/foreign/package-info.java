/** C functions, as {@code java.lang.foreign} calls them. */
package org.meteora.foreign;
