/** From samples to padded batches, in an order that can be resumed. */
package org.meteora.train.batch;
