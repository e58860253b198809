/** Reads {@code config.json} of the Llama family into an {@link org.meteora.model.Architecture}. */
package org.meteora.model.llama;
