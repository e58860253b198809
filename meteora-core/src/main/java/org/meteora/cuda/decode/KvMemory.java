package org.meteora.cuda.decode;

/**
 * The pool of keys and values as device addresses: one array {@code (blocks, kvHeads,
 * KvBlock.TOKENS, headDim)} a layer for keys (rotated) and one for values, in the model's dtype.
 *
 * @param maxLength tokens that a sequence may come to: attention is split by it
 */
public record KvMemory(long[] keys, long[] values, int blocks, int maxLength) {}
