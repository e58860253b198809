package org.meteora.model;

/**
 * Where the keys and values of a step's rows are in a pool: token t of a row is number t mod {@link
 * KvCache#BLOCK} of its block t / BLOCK.
 *
 * @param blocks of each row, in order, the newest token's included
 * @param lengths tokens of each row before the newest
 */
public record BlockTables(int[][] blocks, int[] lengths) {}
