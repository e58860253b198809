package org.meteora.io;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class HostMemoryTest {
  @TempDir Path folder;

  private long available(String limit, String used, String stat) throws IOException {
    var meminfo =
        Files.writeString(
            folder.resolve("meminfo"),
            "MemTotal:       1000 kB\nMemFree:  10 kB\nMemAvailable:    600 kB\n");
    Files.writeString(folder.resolve("memory.max"), limit);
    Files.writeString(folder.resolve("memory.current"), used);
    Files.writeString(folder.resolve("memory.stat"), stat);
    return HostMemory.available(meminfo, folder);
  }

  @Test
  void theSmallerOfMachineAndContainer() throws IOException {
    assertThat(available("max\n", "5\n", "")).isEqualTo(600 << 10);
    assertThat(available("300000\n", "200000\n", "anon 1\ninactive_file 50000\n"))
        .isEqualTo(150000);
    assertThat(available("1000\n", "2000\n", "")).isZero();
    assertThat(HostMemory.available(folder.resolve("none"), folder.resolve("neither")))
        .isGreaterThan(1L << 60);
  }

  @Test
  void thisMachineHasSome() {
    assertThat(HostMemory.available()).isGreaterThan(1 << 20);
  }
}
