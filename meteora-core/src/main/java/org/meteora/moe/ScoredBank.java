package org.meteora.moe;

import ai.djl.ndarray.NDArray;
import org.meteora.nn.Scores;

/**
 * A linear's adapters as kernels choose among them, instead of by {@link Router.Scoring#scores}.
 *
 * @param scores what is computed
 * @param gate {@code (N, in)}; null for {@link Scores#NORM}
 * @param loraA A {@code (Σr, in)}
 * @param loraB B {@code (out, Σr)}
 * @param loraBTransposed Bᵀ {@code (Σr, out)}, row-major
 * @param scales of each adapter
 */
public record ScoredBank(
    Scores scores,
    NDArray gate,
    NDArray loraA,
    NDArray loraB,
    NDArray loraBTransposed,
    float[] scales) {}
