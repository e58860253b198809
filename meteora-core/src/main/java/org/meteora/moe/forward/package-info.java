/** The portable ways to compute the layer's sum, which the MOELINEAR flags name. */
package org.meteora.moe.forward;
