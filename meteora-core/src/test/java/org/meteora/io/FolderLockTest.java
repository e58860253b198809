package org.meteora.io;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.atomic.AtomicInteger;
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

  /** Another process is refused, also after this one has been refused a second lock. */
  @Test
  void anotherProcessIsRefused() throws Exception {
    try (var lock = FolderLock.takeOutput(folder)) {
      assertThatThrownBy(() -> FolderLock.takeOutput(folder)).isInstanceOf(UserException.class);
      var child =
          new ProcessBuilder(
                  ProcessHandle.current().info().command().orElse("java"),
                  "-XX:TieredStopAtLevel=1",
                  "-cp",
                  System.getProperty("java.class.path"),
                  Other.class.getName(),
                  folder.toString())
              .redirectErrorStream(true)
              .start();
      var said = new String(child.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
      assertThat(child.waitFor()).isZero();
      assertThat(said).contains("(process " + ProcessHandle.current().pid() + ")");
    }
  }

  /** Wants a lock that it must not get, and says what it is told. */
  static final class Other {
    private Other() {}

    public static void main(String[] arguments) {
      try (var lock = FolderLock.takeOutput(Path.of(arguments[0]))) {
        System.exit(1);
      } catch (UserException e) {
        System.out.println(e.getMessage());
      }
    }
  }

  /** What stands where the folder has to be is named as that. */
  @Test
  void aFileInThePlaceOfTheFolderIsSaid() throws Exception {
    var file = Files.createFile(folder.resolve("a%sb"));
    assertThatThrownBy(() -> FolderLock.takeOutput(file))
        .isInstanceOf(UserException.class)
        .hasMessage("cannot write into the folder " + file + ": " + file + " is in the way");
  }

  /** A run that wrote nothing leaves nothing that it made, and nothing that was there is gone. */
  @Test
  void nothingIsLeftOfARunThatWroteNothing() throws Exception {
    FolderLock.takeOutput(folder.resolve("new/run")).close();
    assertThat(folder).isEmptyDirectory();
    FolderLock.takeOutput(folder).close();
    assertThat(folder).isEmptyDirectory();
    try (var lock = FolderLock.takeOutput(folder.resolve("other/run"))) {
      Files.createFile(folder.resolve("other/neighbour"));
    }
    assertThat(folder.resolve("other/run")).doesNotExist();
    assertThat(folder.resolve("other/neighbour")).exists();
  }

  /** Garbage collection closes channels that cannot be reached. */
  @Test
  void aLockThatNobodyClosesIsTheProcesss() throws Exception {
    var file = folder.toRealPath().resolve(FolderLock.NAME);
    FolderLock.takeOutput(folder);
    for (int i = 0; i < 3; i++) {
      System.gc();
      Thread.sleep(50); // until what is found has been closed
    }
    try (var descriptors = Files.list(Path.of("/proc/self/fd"))) {
      assertThat(descriptors.filter(each -> file.toString().equals(target(each)))).hasSize(2);
    }
  }

  private static String target(Path descriptor) {
    try {
      return Files.readSymbolicLink(descriptor).toString();
    } catch (IOException e) {
      return ""; // the listing's own
    }
  }

  @Test
  void closedAgainItLeavesTheNextOnesLock() {
    var first = FolderLock.takeOutput(folder);
    first.close();
    try (var second = FolderLock.takeOutput(folder)) {
      first.close();
      assertThat(folder.resolve(FolderLock.NAME)).exists();
      assertThatThrownBy(() -> FolderLock.takeOutput(folder))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("another run");
    }
  }

  @Test
  void theFileStaysBesideWhatWasWritten() throws Exception {
    var run = folder.resolve("run");
    try (var lock = FolderLock.takeOutput(run)) {
      Files.createFile(run.resolve("result"));
    }
    assertThat(run.resolve(FolderLock.NAME)).exists();
  }

  /** Files come and go under those that want to lock them: still one at a time has the folder. */
  @Test
  void oneAtATimeWhereFilesComeAndGo() throws Exception {
    var run = folder.resolve("new/run");
    var inside = new AtomicInteger();
    var most = new AtomicInteger();
    var taken = new AtomicInteger();
    var threads = new ArrayList<Thread>();
    var failures = new ConcurrentLinkedQueue<Throwable>();
    for (int i = 0; i < 4; i++) {
      threads.add(
          Thread.ofPlatform()
              .start(
                  () -> {
                    for (int round = 0; round < 500; round++) {
                      try (var lock = FolderLock.takeOutput(run)) {
                        most.accumulateAndGet(inside.incrementAndGet(), Math::max);
                        taken.incrementAndGet();
                        inside.decrementAndGet();
                      } catch (UserException e) {
                        if (!e.getMessage().startsWith("another run")) {
                          failures.add(e);
                        }
                      }
                    }
                  }));
    }
    for (var thread : threads) {
      thread.join();
    }
    assertThat(failures).isEmpty();
    assertThat(most).hasValue(1);
    assertThat(taken).hasPositiveValue();
    assertThat(run.resolve(FolderLock.NAME)).doesNotExist();
  }

  @Test
  void aLinkInItsPlaceIsNotFollowed() throws Exception {
    var elsewhere = folder.resolve("elsewhere");
    Files.createSymbolicLink(folder.resolve(".lock"), elsewhere);
    assertThatThrownBy(() -> FolderLock.take(folder, ".lock", "in use"))
        .isInstanceOf(UserException.class);
    assertThat(elsewhere).doesNotExist();
  }
}
