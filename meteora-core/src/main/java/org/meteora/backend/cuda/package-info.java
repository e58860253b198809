/**
 * CUDA GPUs: gated layers and whole decode steps by kernels of our own, training by tensor
 * operations.
 */
package org.meteora.backend.cuda;
