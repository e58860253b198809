/** Losses, with their gradients. */
package org.meteora.train.loss;
