/** A whole decode step as one graph of kernels; knows shapes and memory, not the model's blocks. */
package org.meteora.cuda.decode;
