package org.meteora.cli;

import static org.assertj.core.api.Assertions.assertThat;

import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * The launcher makes arguments, file names and output UTF-8, whatever the locale says, and has
 * waiting threads sleep.
 */
class LauncherTest {
  @TempDir Path folder;

  /** The launcher itself, with a program in place of java that shows what it is given. */
  private ProcessBuilder launcher() throws Exception {
    var root = Path.of(System.getProperty("meteora.root", "..")).toAbsolutePath().normalize();
    var launcher = Files.createDirectories(folder.resolve("home/bin")).resolve("meteora");
    Files.copy(root.resolve("meteora-cli/src/dist/bin/meteora"), launcher);
    var jdk = Files.createDirectories(folder.resolve("jdk/bin")).getParent();
    Files.writeString(jdk.resolve("release"), "JAVA_VERSION=\"25.0.1\"\n");
    var java = jdk.resolve("bin/java");
    Files.writeString(
        java, "#!/bin/sh\nlocale charmap\necho \"$@\"\necho waits: ${OMP_WAIT_POLICY-not said}\n");
    for (var file : new Path[] {launcher, java}) {
      assertThat(file.toFile().setExecutable(true)).isTrue();
    }
    var builder = new ProcessBuilder(launcher.toString(), "generate", "--prompt", "Größe 😀");
    builder.environment().put("JAVA_HOME", jdk.toString());
    // bash itself complains of a locale that is not installed
    return builder.redirectError(ProcessBuilder.Redirect.DISCARD);
  }

  private static String output(ProcessBuilder builder) throws Exception {
    var process = builder.start();
    var output = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
    assertThat(process.waitFor()).as(output).isZero();
    return output;
  }

  @Test
  void theLauncherChoosesUtf8UnderAnyLocale() throws Exception {
    var builder = launcher();
    builder.environment().keySet().removeIf(name -> name.matches("LC_.*|LANG"));
    for (var locale : new String[] {"C", "POSIX", "xx_YY.UTF-8", "en_US.ISO-8859-1", "C.UTF-8"}) {
      builder.environment().put("LC_ALL", locale);
      assertThat(output(builder))
          .as(locale)
          .startsWith("UTF-8\n")
          .contains("-Dstdout.encoding=UTF-8");
    }
  }

  /** Threads that spin while they wait take the processor from those they wait for. */
  @Test
  void waitingThreadsSleepUnlessTheUserSaysOtherwise() throws Exception {
    var builder = launcher();
    var variables = builder.environment();
    var own = List.of("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME");
    variables.keySet().removeAll(own);
    assertThat(output(builder)).contains("waits: PASSIVE");
    for (var variable : own) {
      variables.keySet().removeAll(own);
      variables.put(variable, "7");
      assertThat(output(builder))
          .contains(variable.equals("OMP_WAIT_POLICY") ? "waits: 7" : "waits: not said");
    }
  }
}
