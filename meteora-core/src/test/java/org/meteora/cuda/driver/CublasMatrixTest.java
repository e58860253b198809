package org.meteora.cuda.driver;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import org.junit.jupiter.api.Test;
import org.meteora.cuda.driver.Cublas.Matrix;
import org.meteora.tensor.Dtype;

/** What of a product is known before cuBLAS sees it. */
class CublasMatrixTest {
  private static Matrix matrix(int rows, int columns) {
    return Matrix.of(64, rows, columns, Dtype.F32);
  }

  @Test
  void shapesMustBeThoseOfAProduct() {
    var c = matrix(2, 4);
    assertThat(c.innerOf(matrix(2, 3), matrix(3, 4))).isEqualTo(3);
    assertThat(c.innerOf(matrix(3, 2).transpose(), matrix(4, 3).transpose())).isEqualTo(3);
    assertThat(c.innerOf(new Matrix(64, 2, 3, 9, Dtype.F32), matrix(3, 4))).isEqualTo(3);
    var wrong =
        new Matrix[][] {
          {c, matrix(3, 3), matrix(3, 4)},
          {c, matrix(2, 3), matrix(3, 5)},
          {c, matrix(2, 3), matrix(4, 3)},
          {c, matrix(2, 3).transpose(), matrix(3, 4)},
          {matrix(4, 2).transpose(), matrix(2, 3), matrix(3, 4)},
        };
    for (var each : wrong) {
      assertThatThrownBy(() -> each[0].innerOf(each[1], each[2]))
          .isInstanceOf(IllegalArgumentException.class)
          .hasMessageContaining("is no product of");
    }
    assertThat(matrix(2, 3).transpose().transpose()).isEqualTo(matrix(2, 3));
  }
}
