package org.meteora.cuda.decode;

/**
 * The KV cache as device addresses: one array {@code (slots, kvHeads, maxLength, headDim)} a layer
 * for keys (rotated) and one for values, in the model's dtype.
 */
public record KvMemory(long[] keys, long[] values, int slots, int maxLength) {}
