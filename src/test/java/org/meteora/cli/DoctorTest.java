package org.meteora.cli;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.PrintWriter;
import java.io.StringWriter;
import java.util.ArrayDeque;
import java.util.HashSet;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.meteora.io.Jsonl;
import picocli.CommandLine;

class DoctorTest {
  @Test
  void examinesThisMachine() throws Exception {
    var out = new StringWriter();
    int code = new CommandLine(new DoctorCommand()).setOut(new PrintWriter(out)).execute("--json");
    assertThat(code).isZero();
    var found = Jsonl.JSON.readTree(out.toString());
    assertThat(found.get("runs").asBoolean()).isTrue();
    assertThat(found.get("checks").findValuesAsText("name"))
        .contains("java", "memory", "disk", "driver", "pytorch", "mpi", "charts", "test on cpu");
    for (var check : found.get("checks")) {
      assertThat(check.get("state").asText()).isIn(List.of("ok", "note"));
      assertThat(check.get("text").asText()).isNotBlank();
    }
  }

  /** What the advice names are options that some command has. */
  @Test
  void optionsThatTakeMemoryExist() {
    var options = new HashSet<String>();
    var left = new ArrayDeque<>(List.of(Main.commandLine()));
    while (!left.isEmpty()) {
      var command = left.pop();
      command.getCommandSpec().options().forEach(option -> options.add(option.longestName()));
      left.addAll(command.getSubcommands().values());
    }
    assertThat(options).containsAll(MemoryAdvice.OPTIONS);
  }

  @Test
  void saysInOneLineThatMemoryRanOut() {
    var line = new CommandLine(new BenchTrainCommand());
    var device =
        new RuntimeException(
            "libtorch failed in aten::linear: CUDA out of memory. Tried to allocate 1.53 GiB. GPU 0"
                + " has a total capacity of 79.18 GiB of which 1.14 GiB is free. Including"
                + " non-PyTorch memory, this process has 78.03 GiB memory in use.");
    assertThat(MemoryAdvice.explain(new IllegalStateException(device), line).orElseThrow())
        .hasMessage(
            "GPU 0 has too little memory: 1.53 GiB more are needed, 1.14 GiB of its 79.18 GiB are"
                + " free; lower --batch or --tokens or --adapters");
    var host =
        new RuntimeException(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate"
                + " memory: you tried to allocate 1073741824 bytes. Error code 12");
    assertThat(MemoryAdvice.explain(host, line).orElseThrow())
        .hasMessageStartingWith("too little memory: 1,025 MiB more are needed, ");
    assertThat(MemoryAdvice.explain(new OutOfMemoryError("Java heap space"), line).orElseThrow())
        .hasMessageContaining("METEORA_JAVA_OPTS=-Xmx8g; lower --batch or --tokens or --adapters");
    assertThat(MemoryAdvice.explain(new IllegalStateException("else"), line)).isEmpty();
  }
}
