/** Tasks made of other tasks' questions. */
package org.meteora.data.composite;
