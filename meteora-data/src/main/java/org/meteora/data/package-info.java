/** A sample, and the texts around it. */
package org.meteora.data;
