package org.meteora.generate;

/**
 * A prompt to continue, and how.
 *
 * @param prompt token ids, at least one
 * @param config how tokens are chosen, and where it ends
 * @param stream of random numbers: requests of one seed draw from different ones
 */
public record Request(int[] prompt, GenerationConfig config, long stream) {}
