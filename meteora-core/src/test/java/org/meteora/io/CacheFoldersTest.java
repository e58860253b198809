package org.meteora.io;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class CacheFoldersTest {
  @TempDir Path folder;

  private Path make(String name, String permissions) throws IOException {
    var made = Files.createDirectories(folder.resolve(name));
    Files.setPosixFilePermissions(made, PosixFilePermissions.fromString(permissions));
    return made;
  }

  @Test
  void codeIsRunFromFoldersThatNobodyElseWritesTo() throws IOException {
    assertThat(CacheFolders.problem(make("own", "rwxr-xr-x"))).isEmpty();
    assertThat(CacheFolders.problem(folder.resolve("own/not/yet/there"))).isEmpty();
    assertThat(CacheFolders.problem(make("open", "rwxrwxrwx")).orElseThrow()).contains("open");
    assertThat(CacheFolders.problem(folder.resolve("open/below"))).isPresent();
    assertThat(CacheFolders.problem(make("group", "rwxrwxr-x"))).isPresent();
    // what was planted while it was open
    make("was-open", "rwxr-xr-x");
    make("was-open/pytorch", "rwxrwxrwx");
    assertThat(CacheFolders.problem(folder.resolve("was-open")).orElseThrow()).contains("pytorch");
    // nobody else gets into it, whatever the permissions inside
    make("was-open", "rwx------");
    assertThat(CacheFolders.problem(folder.resolve("was-open"))).isEmpty();
    // a link is what it leads to
    Files.createSymbolicLink(folder.resolve("link"), folder.resolve("open"));
    assertThat(CacheFolders.problem(folder.resolve("link"))).isPresent();
  }

  @Test
  void resultsDoNotSayWhereTheHomeFolderIs() {
    var home = CacheFolders.home().orElseThrow();
    var here = Path.of("").toAbsolutePath();
    assertThat(CacheFolders.shown(home.resolve("m/base"))).isEqualTo("~/m/base");
    assertThat(CacheFolders.shown("--out=" + home + "/x")).isEqualTo("--out=~/x");
    assertThat(CacheFolders.shown(here.resolve("adapters/x"))).isEqualTo("adapters/x");
    assertThat(CacheFolders.shown(Path.of("adapters/x"))).isEqualTo("adapters/x");
    assertThat(CacheFolders.shown("/data" + home + "/x")).isEqualTo("/data" + home + "/x");
    assertThat(CacheFolders.shown(home + "stead/x")).isEqualTo(home + "stead/x");
    assertThat(CacheFolders.shown("/data/models")).isEqualTo("/data/models");
  }

  /** What a killed process had unpacked goes, behind a link too; what is whole or in use stays. */
  @Test
  void whatWasUnpackedByHalfIsRemoved() throws IOException {
    for (var name : new String[] {"tmp123", "tmp77", "2.7.1-cpu", "tmp99"}) {
      Files.writeString(make("pytorch/" + name, "rwxr-xr-x").resolve("lib.so"), "x");
    }
    Files.writeString(folder.resolve("pytorch/2.7.1-cpu/jni456tmp"), "x");
    try (var all = Files.walk(folder)) {
      for (var each : all.toList()) {
        Files.setLastModifiedTime(each, java.nio.file.attribute.FileTime.fromMillis(1_000));
      }
    }
    Files.writeString(folder.resolve("pytorch/tmp77/lib2.so"), "being unpacked");
    try (var open = Files.newInputStream(folder.resolve("pytorch/tmp99/lib.so"))) {
      CacheFolders.removeUnfinished(
          Files.createSymbolicLink(folder.resolve("link"), folder.resolve("pytorch")));
      assertThat(open.read()).isEqualTo('x');
    }
    assertThat(folder.resolve("pytorch").toFile().list())
        .containsExactlyInAnyOrder("tmp77", "tmp99", "2.7.1-cpu");
    assertThat(folder.resolve("pytorch/2.7.1-cpu").toFile().list()).containsExactly("lib.so");
  }
}
