/** Saved results beside each other and beside published ones. */
package org.meteora.eval.compare;
