package org.meteora.model;

import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Optional;
import java.util.stream.Collectors;
import org.meteora.TooLittleMemory;
import org.meteora.nn.Projection;
import org.meteora.tensor.Dtype;

/**
 * What must be in a device's memory at once, part by part, estimated before any of it is taken.
 * Estimates are low: what they refuse would fail.
 *
 * @param parts bytes by what they are for, in order
 */
public record MemoryNeed(Map<String, Long> parts) {
  /** Nothing yet. */
  public static final MemoryNeed NONE = new MemoryNeed(Map.of());

  /** This and another part. */
  public MemoryNeed and(String part, long bytes) {
    if (bytes <= 0) {
      return this;
    }
    var all = new LinkedHashMap<>(parts);
    all.merge(part, bytes, Long::sum);
    return new MemoryNeed(all);
  }

  /** This and all parts of another. */
  public MemoryNeed and(MemoryNeed other) {
    var all = new LinkedHashMap<>(parts);
    other.parts.forEach((part, bytes) -> all.merge(part, bytes, Long::sum));
    return new MemoryNeed(all);
  }

  /** All of it. */
  public long bytes() {
    return parts.values().stream().mapToLong(Long::longValue).sum();
  }

  /**
   * Checks that it fits beside what is in memory now.
   *
   * @throws TooLittleMemory if not
   */
  public void require(Backend backend) {
    var lack = lacking(backend);
    if (lack.isPresent()) {
      throw new TooLittleMemory(lack.get());
    }
  }

  /** What is needed and what is free, when that is less. */
  public Optional<String> lacking(Backend backend) {
    var memory = backend.memory(bytes());
    return bytes() <= memory.free()
        ? Optional.empty()
        : Optional.of(
            "%s has too little memory: %,d MiB are needed (%s), %,d MiB are free"
                .formatted(memory.owner(), mebibytes(bytes()), this, memory.free() >> 20));
  }

  private static long mebibytes(long bytes) {
    return (bytes >> 20) + 1;
  }

  /** Such as {@code weights 15,317 MiB, adapters 1,204 MiB}. */
  @Override
  public String toString() {
    return parts.entrySet().stream()
        .map(part -> "%s %,d MiB".formatted(part.getKey(), mebibytes(part.getValue())))
        .collect(Collectors.joining(", "));
  }

  /** Numbers in a model without its adapters. */
  public static long parameters(Architecture config) {
    long embedding = (long) config.vocabSize() * config.hiddenSize();
    long layer = 2L * config.hiddenSize();
    for (var module : Projection.values()) {
      var shape = config.shape(module);
      layer += shape[0] * shape[1] + (config.biased().contains(module) ? shape[0] : 0);
    }
    return (config.tieWordEmbeddings() ? 1 : 2) * embedding
        + config.hiddenSize()
        + config.numHiddenLayers() * layer;
  }

  /** Numbers in the gates, A and B of adapters of one rank on all projections. */
  public static long adapterParameters(Architecture config, int adapters, int rank) {
    long layer = 0;
    for (var module : Projection.values()) {
      var shape = config.shape(module);
      layer += (long) adapters * (shape[1] + rank * (shape[0] + shape[1]));
    }
    return config.numHiddenLayers() * layer;
  }

  /** Bytes of the keys and values of some sequences of so many tokens. */
  public static long cacheBytes(Architecture config, Dtype dtype, long sequences, long tokens) {
    return 2L
        * config.numHiddenLayers()
        * config.numKeyValueHeads()
        * config.headDim()
        * dtype.bytes()
        * sequences
        * tokens;
  }

  /** Bytes of what one layer holds at once of so many tokens, at the least. */
  public static long layerBytes(Architecture config, Dtype dtype, long tokens) {
    return tokens * dtype.bytes() * (2L * config.hiddenSize() + 2L * config.intermediateSize());
  }

  /**
   * What a training step keeps of so many tokens for its backward pass, at the least.
   *
   * @param layers from the first one with an adapter to the last; those before keep nothing
   * @param recomputed layers keep their input alone, and are computed again
   */
  public static long activationBytes(
      Architecture config, Dtype dtype, long layers, long tokens, boolean recomputed) {
    long inputs = layers * tokens * config.hiddenSize() * dtype.bytes();
    long layer = layerBytes(config, dtype, tokens);
    return recomputed ? inputs + layer : inputs + layers * layer;
  }

  /**
   * What libtorch's recording of all layers' passes holds of so many tokens, about: adapters on all
   * projections and dropout included, 3.9 GB were measured for 720 tokens of a model with 30 layers
   * of hidden size 576 and MLP size 1,536 in float32, 10.7 times {@link #layerBytes} a layer.
   */
  public static long recordedBytes(Architecture config, Dtype dtype, long tokens) {
    return config.numHiddenLayers() * 11 * layerBytes(config, dtype, tokens);
  }
}
