/** From files to models and back: base models, PEFT adapters, MeteoRA checkpoints. */
package org.meteora.checkpoint;
