package org.meteora.fuzz;

import static org.assertj.core.api.Assertions.assertThat;

import java.nio.file.Path;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** A short run of what scripts/fuzz does at length; the seed is fixed. */
class FuzzTest {
  @ParameterizedTest
  @EnumSource
  void everyInputIsReadOrRefusedInOneLine(Kind kind) throws Exception {
    var root = Path.of(System.getProperty("meteora.root", "..")).toAbsolutePath().normalize();
    var report = Fuzz.run(root, kind, 1, 300);
    assertThat(report.findings()).isEmpty();
    assertThat(report.read()).as("some are good").isPositive();
  }
}
