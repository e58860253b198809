/**
 * The portable ways to compute the layer's sum: what the MOELINEAR flags name, and what backends
 * leave to tensor operations. What runs by default is in {@code org.meteora.backend}.
 */
package org.meteora.moe.forward;
