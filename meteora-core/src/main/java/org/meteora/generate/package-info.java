/** From token ids to answers: prefill, decode steps, sampling, tokenizer. */
package org.meteora.generate;
