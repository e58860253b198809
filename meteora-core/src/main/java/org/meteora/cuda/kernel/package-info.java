/** The kernels: their sources, their arguments as records, and how each is launched. */
package org.meteora.cuda.kernel;
