/**
 * CUDA GPUs: gated layers ({@code CudaForward}), whole decode steps ({@code CudaDecoder}) and whole
 * training passes ({@code CudaTraining}) by kernels of our own and cuBLAS.
 */
package org.meteora.backend.cuda;
