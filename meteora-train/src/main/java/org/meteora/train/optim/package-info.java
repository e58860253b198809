/** The optimiser and its schedule. */
package org.meteora.train.optim;
