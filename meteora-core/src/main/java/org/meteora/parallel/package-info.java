/** Several processes as one: how they start, find and tell each other, over NCCL or MPI. */
package org.meteora.parallel;
