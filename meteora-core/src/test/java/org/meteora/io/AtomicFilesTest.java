package org.meteora.io;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.FileTime;
import java.nio.file.attribute.PosixFilePermissions;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.UserException;

class AtomicFilesTest {
  @TempDir Path folder;

  @Test
  void aFileThatIsReplacedKeepsItsPermissions() throws IOException {
    var file = folder.resolve("secret.json");
    Files.writeString(file, "old");
    Files.setPosixFilePermissions(file, PosixFilePermissions.fromString("rw-------"));
    AtomicFiles.writeString(file, "new");
    assertThat(file).hasContent("new");
    assertThat(PosixFilePermissions.toString(Files.getPosixFilePermissions(file)))
        .isEqualTo("rw-------");
  }

  /** As any other program's new files: what the umask leaves, in a process with a umask of 077. */
  @Test
  void newFilesFollowTheUmask() throws Exception {
    var file = folder.resolve("result.json");
    var child =
        new ProcessBuilder(
                "sh",
                "-c",
                "umask 077; exec \"$@\"",
                "sh",
                ProcessHandle.current().info().command().orElse("java"),
                "-XX:TieredStopAtLevel=1",
                "-cp",
                System.getProperty("java.class.path"),
                Child.class.getName(),
                file.toString())
            .inheritIO()
            .start();
    assertThat(child.waitFor()).isZero();
    assertThat(PosixFilePermissions.toString(Files.getPosixFilePermissions(file)))
        .isEqualTo("rw-------");
  }

  /** Writes one file. */
  static final class Child {
    private Child() {}

    public static void main(String[] arguments) {
      AtomicFiles.writeString(Path.of(arguments[0]), "{}");
    }
  }

  @Test
  void aLinkStaysALink() throws IOException {
    var real = Files.writeString(folder.resolve("real"), "old");
    var link = Files.createSymbolicLink(folder.resolve("link"), real);
    AtomicFiles.writeString(link, "new");
    assertThat(Files.isSymbolicLink(link)).isTrue();
    assertThat(real).hasContent("new");
  }

  @Test
  void whatADeadProcessLeftIsRemoved() throws IOException {
    var dead = Files.writeString(folder.resolve(".x.json.999999999-1f.tmp"), "half");
    var other = Files.writeString(folder.resolve(".notes.tmp"), "another program's");
    long running = ProcessHandle.current().parent().orElseThrow().pid();
    var young = Files.writeString(folder.resolve(".y.json." + running + "-2a.tmp"), "being made");
    var old = Files.writeString(folder.resolve(".z.json." + running + "-2b.tmp"), "half");
    Files.setLastModifiedTime(old, FileTime.fromMillis(0));
    AtomicFiles.writeString(folder.resolve("x.json"), "{}");
    assertThat(dead).doesNotExist();
    assertThat(old).doesNotExist();
    assertThat(other).exists();
    assertThat(young).exists();
  }

  @Test
  void nothingStaysOfAFailure() throws IOException {
    var file = Files.writeString(folder.resolve("kept"), "old");
    assertThatThrownBy(
            () ->
                AtomicFiles.writeStream(
                    file,
                    out -> {
                      out.write(1);
                      throw new IOException("No space left on device");
                    }))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("No space left");
    assertThat(file).hasContent("old");
    assertThat(folder.toFile().list()).containsExactly("kept");
  }
}
