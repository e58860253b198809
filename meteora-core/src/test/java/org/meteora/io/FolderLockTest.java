package org.meteora.io;

import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.UserException;

class FolderLockTest {
  @TempDir Path folder;

  @Test
  void oneAtATime() {
    var run = folder.resolve("run");
    try (var lock = FolderLock.take(run, ".lock", "run is in use")) {
      assertThatThrownBy(() -> FolderLock.take(run, ".lock", "run is in use"))
          .isInstanceOf(UserException.class)
          .hasMessage("run is in use (process " + ProcessHandle.current().pid() + ")");
    }
    FolderLock.take(run, ".lock", "run is in use").close();
  }

  @Test
  void aLinkInItsPlaceIsNotFollowed() throws Exception {
    var elsewhere = folder.resolve("elsewhere");
    Files.createSymbolicLink(folder.resolve(".lock"), elsewhere);
    assertThatThrownBy(() -> FolderLock.take(folder, ".lock", "in use"))
        .isInstanceOf(UserException.class);
    org.assertj.core.api.Assertions.assertThat(elsewhere).doesNotExist();
  }
}
