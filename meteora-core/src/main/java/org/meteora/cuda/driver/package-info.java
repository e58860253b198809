/**
 * CUDA's driver API and the runtime compiler by foreign functions: memory, streams, graphs,
 * modules.
 */
package org.meteora.cuda.driver;
