package org.meteora.cuda.driver;

import static org.assertj.core.api.Assertions.assertThat;

import java.time.Duration;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.FutureTask;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

@Timeout(60)
class CompilationsTest {
  private static Thread start(boolean daemon, Runnable task) {
    return Thread.ofPlatform().daemon(daemon).start(task);
  }

  @Test
  void theEndWaitsForWhatHasBegun() throws Exception {
    var compilations = new Compilations(60_000);
    compilations.begin();
    compilations.begin();
    var hook = start(true, compilations::finish);
    compilations.end();
    assertThat(hook.join(Duration.ofMillis(100))).isFalse();
    compilations.end();
    hook.join();
  }

  @Test
  void whoIsWaitedForGoesOnWhileTheProcessEnds() throws Exception {
    var compilations = new Compilations(50);
    compilations.finish();
    var finished = new CountDownLatch(1);
    var training =
        start(
            false,
            () -> {
              compilations.begin();
              compilations.end();
              finished.countDown();
            });
    assertThat(finished.await(30, TimeUnit.SECONDS))
        .isTrue(); // as a shutdown hook of training does
    training.join();
  }

  @Test
  void nothingIsBegunWhileTheProcessEndsThatNobodyWaitsFor() throws Exception {
    var compilations = new Compilations(60_000);
    compilations.finish();
    var caller = start(false, compilations::begin);
    assertThat(caller.join(Duration.ofMillis(100))).isFalse();
    caller.interrupt();
    caller.join();
    var ahead =
        new FutureTask<>(
            () -> {
              compilations.begin();
              return null;
            });
    start(true, ahead).join();
    assertThat(ahead.state()).isEqualTo(FutureTask.State.FAILED);
    assertThat(ahead.exceptionNow()).isInstanceOf(IllegalStateException.class);
  }
}
