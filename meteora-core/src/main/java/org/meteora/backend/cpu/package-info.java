/** The CPU: gated layers in Java on the tensors' memory, and the plain blocks by libtorch. */
package org.meteora.backend.cpu;
