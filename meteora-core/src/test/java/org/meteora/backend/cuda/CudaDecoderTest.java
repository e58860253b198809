package org.meteora.backend.cuda;

import static org.assertj.core.api.Assertions.assertThat;

import org.junit.jupiter.api.Test;

/** What of a decoder needs no GPU. */
class CudaDecoderTest {
  private static final long GIB = 1L << 30;

  /** Keys and values of a token of Llama 2 7B in bf16. */
  private static final long COLUMN = 2L * 32 * 32 * 128 * 2;

  /** On a GPU that the weights almost fill, one sequence may still grow. */
  @Test
  void littleFreeMemoryIsShared() {
    assertThat(CudaDecoder.columns(60 * GIB, COLUMN)).isEqualTo(57 * GIB / 10 * 9 / COLUMN);
    assertThat(CudaDecoder.columns(6 * GIB, COLUMN)).isEqualTo(3 * GIB / 10 * 9 / COLUMN);
    assertThat(CudaDecoder.columns(2 * GIB, COLUMN)).isBetween(1800L, 1850L);
    assertThat(CudaDecoder.columns(0, COLUMN)).isZero();
  }
}
