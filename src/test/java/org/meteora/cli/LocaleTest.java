package org.meteora.cli;

import static org.assertj.core.api.Assertions.assertThat;

import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The launcher makes arguments, file names and output UTF-8, whatever the locale says. */
class LocaleTest {
  @TempDir Path folder;

  @Test
  void theLauncherChoosesUtf8UnderAnyLocale() throws Exception {
    var root = Path.of(System.getProperty("meteora.root", "..")).toAbsolutePath().normalize();
    // the launcher itself, with a program in place of java that shows what it is given
    var home = Files.createDirectories(folder.resolve("home/bin"));
    var launcher = home.resolve("meteora");
    Files.copy(root.resolve("meteora-cli/src/dist/bin/meteora"), launcher);
    var jdk = Files.createDirectories(folder.resolve("jdk/bin")).getParent();
    Files.writeString(jdk.resolve("release"), "JAVA_VERSION=\"25.0.1\"\n");
    var java = jdk.resolve("bin/java");
    Files.writeString(java, "#!/bin/sh\nlocale charmap\necho \"$@\"\n");
    for (var file : new Path[] {launcher, java}) {
      assertThat(file.toFile().setExecutable(true)).isTrue();
    }
    for (var locale : new String[] {"C", "POSIX", "xx_YY.UTF-8", "en_US.ISO-8859-1", "C.UTF-8"}) {
      var builder = new ProcessBuilder(launcher.toString(), "generate", "--prompt", "Größe 😀");
      builder
          .environment()
          .keySet()
          .removeIf(name -> name.startsWith("LC_") || name.equals("LANG"));
      builder.environment().put("LC_ALL", locale);
      builder.environment().put("JAVA_HOME", jdk.toString());
      // bash itself complains of a locale that is not installed
      var process = builder.redirectError(ProcessBuilder.Redirect.DISCARD).start();
      var output = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
      assertThat(process.waitFor()).as(output).isZero();
      assertThat(output).as(locale).startsWith("UTF-8\n").contains("-Dstdout.encoding=UTF-8");
    }
  }
}
