/**
 * The CPU: gated layers in Java on the tensors' memory, at inference by {@code CpuInference} and in
 * training by {@code CpuTraining}; the plain blocks by libtorch.
 */
package org.meteora.backend.cpu;
