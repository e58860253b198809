package org.meteora.parallel;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.concurrent.Callable;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.stream.LongStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** Processes are threads here; each has a connection of its own to the first. */
@Timeout(value = 60, threadMode = Timeout.ThreadMode.SEPARATE_THREAD)
class ControlTest {
  private static Launch launch(int rank, int size, int port, String job) {
    return new Launch(
        rank,
        size,
        rank,
        Launch.Starter.TORCHRUN,
        Launch.Manager.NONE,
        Optional.of("127.0.0.1"),
        port,
        job);
  }

  private interface Work<T> {
    T run(Control control) throws Exception;
  }

  private static <T> List<T> together(int size, Work<T> work) throws Exception {
    try (var threads = Executors.newCachedThreadPool();
        var meeting = Rendezvous.listen(0)) {
      var results = new ArrayList<Future<T>>();
      for (int i = 0; i < size; i++) {
        int rank = i;
        var launch = launch(rank, size, meeting.port(), "job");
        Callable<T> task =
            () -> {
              try (var control =
                  rank == 0
                      ? meeting.await(launch, lost -> {})
                      : Rendezvous.connect(launch, lost -> {})) {
                return work.run(control);
              }
            };
        results.add(threads.submit(task));
      }
      var all = new ArrayList<T>();
      for (var result : results) {
        all.add(result.get());
      }
      return all;
    }
  }

  /** On a thread of its own: the common pool may have only one. */
  private static <T> CompletableFuture<T> background(java.util.function.Supplier<T> work) {
    return CompletableFuture.supplyAsync(work, task -> Thread.ofVirtual().start(task));
  }

  private static byte[] bytes(String text) {
    return text.getBytes(StandardCharsets.UTF_8);
  }

  @Test
  void gathersAndBroadcastsInTheOrderOfRanks() throws Exception {
    var results =
        together(
            4,
            control -> {
              var heard = new StringBuilder();
              for (int round = 0; round < 20; round++) {
                var all = control.gather(bytes(control.rank() + "." + round));
                var text = new StringBuilder();
                all.forEach(b -> text.append(new String(b, StandardCharsets.UTF_8)).append(' '));
                heard.append(
                    new String(control.broadcast(bytes(text.toString())), StandardCharsets.UTF_8));
              }
              return heard.toString();
            });
    var expected = new StringBuilder();
    for (int round = 0; round < 20; round++) {
      expected.append("0.%1$d 1.%1$d 2.%1$d 3.%1$d ".formatted(round));
    }
    assertThat(results).containsOnly(expected.toString()).hasSize(4);
  }

  /** Numbers are given once, though the first process does something else; messages are kept. */
  @Test
  void numbersAreGivenOnceAndMessagesCome() throws Exception {
    var results =
        together(
            4,
            control -> {
              var mine = new ArrayList<Long>();
              for (int round = 0; round < 2; round++) {
                if (control.rank() == 0) {
                  control.restartNumbers();
                }
                control.broadcast(bytes("begin"));
                for (int i = 0; i < 50; i++) {
                  mine.add(control.nextNumber());
                  if (control.rank() > 0) {
                    control.send(bytes("" + mine.getLast()));
                  }
                }
                control.gather(bytes("end"));
              }
              if (control.rank() == 0) { // messages sent before the end have come with it
                control
                    .received()
                    .forEach(b -> mine.add(Long.valueOf(new String(b, StandardCharsets.UTF_8))));
              }
              return mine;
            });
    var expected = LongStream.range(0, 400).map(i -> i / 2).boxed().toList();
    assertThat(results.getFirst()).hasSize(100 + 300);
    assertThat(results.getFirst().stream().sorted().toList()).isEqualTo(expected);
  }

  /** The second takes the next port, as beside torchrun's store; strangers are sent away. */
  @Test
  void findsTheFirstProcessBesideOthers() throws Exception {
    try (var store = Rendezvous.listen(0)) {
      int port = store.port();
      try (var meeting = Rendezvous.listen(port)) {
        assertThat(meeting.port()).isGreaterThan(port).isLessThan(port + 16);
        var first = background(() -> meeting.await(launch(0, 2, port, "mine"), lost -> {}));
        try (var stranger = new Socket("127.0.0.1", meeting.port())) {
          new DataOutputStream(stranger.getOutputStream()).write(new byte[64]);
          assertThat(new DataInputStream(stranger.getInputStream()).readInt()).isZero();
        }
        // the store's port takes connections and never answers
        var second = Rendezvous.connect(launch(1, 2, port, "mine"), lost -> {});
        try (var joined = first.get(30, TimeUnit.SECONDS);
            second) { // leaves before the first, which waits for it
          second.gather(bytes("here"));
          assertThat(joined.gather(bytes("first")).get(1)).isEqualTo(bytes("here"));
        }
      }
    }
  }

  /** One that sends a byte now and then, and others that send none, hold nobody up. */
  @Test
  void strangersThatDribbleKeepNobodyWaiting() throws Exception {
    try (var meeting = Rendezvous.listen(0)) {
      var first = background(() -> meeting.await(launch(0, 2, meeting.port(), "job"), lost -> {}));
      var strangers = new ArrayList<Socket>();
      for (int i = 0; i < 20; i++) {
        strangers.add(new Socket("127.0.0.1", meeting.port()));
      }
      long began = System.nanoTime();
      var dribbler = strangers.getFirst();
      var sent =
          background(
              () -> {
                int bytes = 0;
                try {
                  for (; bytes < 40; bytes++) {
                    dribbler.getOutputStream().write(0);
                    Thread.sleep(500);
                  }
                } catch (IOException | InterruptedException e) {
                  // it has been sent away
                }
                return bytes;
              });
      try (var second = Rendezvous.connect(launch(1, 2, meeting.port(), "job"), lost -> {});
          var joined = first.get(30, TimeUnit.SECONDS)) {
        assertThat(System.nanoTime() - began).as("nanoseconds").isLessThan(4_000_000_000L);
        second.close(); // before the first, which waits for it
      }
      assertThat(sent.get(30, TimeUnit.SECONDS)).as("bytes before its time is over").isLessThan(20);
      for (var stranger : strangers) {
        stranger.close();
      }
    }
  }

  /** Else one that came early would take the first for lost while that waits for a late one. */
  @Test
  void signsOfLifeComeBeforeAllHaveCome() throws Exception {
    try (var meeting = Rendezvous.listen(0)) {
      var first = launch(0, 3, meeting.port(), "job");
      var joined = background(() -> meeting.await(first, lost -> {}));
      try (var early = new Socket("127.0.0.1", meeting.port())) {
        var out = new DataOutputStream(early.getOutputStream());
        out.writeInt(0x4d455445);
        out.write(MessageDigest.getInstance("SHA-256").digest(bytes("job/3")));
        out.writeInt(1);
        var in = new DataInputStream(early.getInputStream());
        assertThat(in.readInt()).isEqualTo(0x4d455445);
        early.setSoTimeout(10_000);
        assertThat(in.readByte()).as("a heartbeat").isEqualTo((byte) 1);
        assertThat(in.readInt()).isZero();
        assertThat(joined).isNotDone();
      }
    }
  }

  @Test
  void oneThatEndsWithoutAWordIsLostAndAllAreTold() throws Exception {
    try (var meeting = Rendezvous.listen(0)) {
      var first = launch(0, 3, meeting.port(), "job");
      var atFirst = new CompletableFuture<Control.Lost>();
      var atThird = new CompletableFuture<Control.Lost>();
      var joined = background(() -> meeting.await(first, atFirst::complete));
      var third =
          background(
              () -> Rendezvous.connect(launch(2, 3, meeting.port(), "job"), atThird::complete));
      try (var dying = new Socket("127.0.0.1", meeting.port())) {
        var out = new DataOutputStream(dying.getOutputStream());
        out.writeInt(0x4d455445);
        out.write(MessageDigest.getInstance("SHA-256").digest(bytes("job/3")));
        out.writeInt(1);
        assertThat(new DataInputStream(dying.getInputStream()).readInt()).isEqualTo(0x4d455445);
        joined.get();
        third.get();
      }
      assertThat(atFirst.get().rank()).isEqualTo(1);
      assertThat(atFirst.get().message()).isEqualTo("rank 1 was lost: it ended without a word");
      assertThat(atThird.get().message()).isEqualTo("rank 1 was lost: it ended without a word");
      assertThatThrownBy(() -> joined.get().gather(bytes("on")))
          .hasMessageContaining("rank 1 is gone");
    }
  }

  /**
   * One that was stopped for long finds out when it wakes up, and does not take others for lost.
   */
  @Test
  void oneThatTheOthersHaveGivenUpIsToldSo() throws Exception {
    try (var meeting = new ServerSocket(0)) {
      var told = new CompletableFuture<Control.Lost>();
      var launch = launch(1, 2, meeting.getLocalPort(), "job");
      var joined = background(() -> Rendezvous.connect(launch, told::complete));
      try (var first = meeting.accept()) {
        var in = new DataInputStream(first.getInputStream());
        in.readNBytes(4 + 32 + 4);
        var out = new DataOutputStream(first.getOutputStream());
        out.writeInt(0x4d455445);
        joined.get();
        out.writeByte(1); // a heartbeat that came before
        out.writeInt(0);
        out.writeByte(4);
        out.writeInt(4);
        out.write(bytes("late"));
      }
      assertThat(told.get()).isEqualTo(new Control.Lost(1, "late"));
    }
  }

  /** A message too large for the sockets' buffers waits for a reader that does not come. */
  @Test
  void oneThatStopsWhileItIsSentSomethingIsLost() throws Exception {
    try (var meeting = new ServerSocket(0)) {
      var told = new CompletableFuture<Control.Lost>();
      var launch = launch(1, 2, meeting.getLocalPort(), "job");
      var joined = background(() -> Rendezvous.connect(launch, told::complete));
      try (var first = meeting.accept()) {
        new DataInputStream(first.getInputStream()).readNBytes(4 + 32 + 4);
        new DataOutputStream(first.getOutputStream()).writeInt(0x4d455445);
        var control = joined.get();
        background(() -> control.gather(new byte[64 << 20]));
        var lost = told.get(70, java.util.concurrent.TimeUnit.SECONDS);
        assertThat(lost.rank()).isZero();
        assertThat(lost.message()).contains("has not answered");
      }
    }
  }

  @Test
  void aFailureIsToldWithItsRank() throws Exception {
    try (var meeting = Rendezvous.listen(0)) {
      var port = meeting.port();
      var told = new ArrayList<CompletableFuture<Control.Lost>>();
      for (int i = 0; i < 3; i++) {
        told.add(new CompletableFuture<>());
      }
      var first = background(() -> meeting.await(launch(0, 3, port, "job"), told.get(0)::complete));
      var second =
          background(() -> Rendezvous.connect(launch(1, 3, port, "job"), told.get(1)::complete));
      var third =
          background(() -> Rendezvous.connect(launch(2, 3, port, "job"), told.get(2)::complete));
      first.get();
      second.get();
      third.get().fail("no space left on device");
      assertThat(told.get(0).get().message()).isEqualTo("rank 2: no space left on device");
      assertThat(told.get(1).get().message()).isEqualTo("rank 2: no space left on device");
    }
  }

  /**
   * Else the first process would say that another is gone, before it says what that one has said.
   */
  @Test
  void whoWaitsForOneThatHasFailedWaitsUntilThatIsSaid() throws Exception {
    try (var meeting = Rendezvous.listen(0)) {
      var port = meeting.port();
      var told = new CompletableFuture<Control.Lost>();
      var said = new CompletableFuture<Void>();
      var first =
          background(
              () ->
                  meeting.await(
                      launch(0, 2, port, "job"),
                      lost -> {
                        told.complete(lost);
                        said.join();
                      }));
      var second = Rendezvous.connect(launch(1, 2, port, "job"), lost -> {});
      var waiting = background(() -> first.join().gather(bytes("on")));
      background(
          () -> {
            second.fail("no space left on device");
            return null;
          });
      assertThat(told.get().message()).isEqualTo("rank 1: no space left on device");
      assertThat(waiting.isDone()).isFalse();
      assertThatThrownBy(() -> waiting.get(1500, TimeUnit.MILLISECONDS))
          .isInstanceOf(java.util.concurrent.TimeoutException.class);
      said.complete(null);
      assertThatThrownBy(waiting::get).hasMessageContaining("rank 1 is gone");
    }
  }
}
