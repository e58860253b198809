/** Operations on libtorch's tensors, dtypes, devices, the BLAS, threads. */
package org.meteora.tensor;
