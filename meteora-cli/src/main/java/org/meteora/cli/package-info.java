/** The {@code meteora} command, and the benchmarks. */
package org.meteora.cli;
