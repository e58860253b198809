/** The gated linear layer: its formula, its gate, and what a request wants of it. */
package org.meteora.moe;
