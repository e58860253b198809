package org.meteora.parallel;

import java.io.BufferedOutputStream;
import java.io.Closeable;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.net.BindException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.SocketTimeoutException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.function.Consumer;
import java.util.stream.IntStream;
import org.meteora.UserException;
import org.meteora.io.Digests;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** How the processes of a job find each other: the first one listens, all others connect to it. */
final class Rendezvous {
  private static final Logger LOG = LoggerFactory.getLogger(Rendezvous.class);
  private static final Duration MEETING = Duration.ofMinutes(5);

  /** After so long those that are missing are logged. */
  private static final Duration LOG_MISSING_AFTER = Duration.ofSeconds(15);

  /** Within this a process says who it is, and is answered. */
  private static final Duration GREETING = Duration.ofSeconds(5);

  /** How many ports the first process may have, from the one that is told. */
  private static final int PORTS = 16;

  private static final int MAGIC = 0x4d455445;

  private Rendezvous() {}

  /** The first process's side before the others have come: its port is known. */
  public static final class Meeting implements AutoCloseable {
    private final ServerSocket server;

    private Meeting(ServerSocket server) {
      this.server = server;
    }

    /** The port that the others connect to. */
    public int port() {
      return server.getLocalPort();
    }

    /**
     * Waits for all other processes.
     *
     * @param onLost told once when a process is lost; called on another thread
     * @throws UserException when they do not come in time
     */
    public Control await(Launch launch, Consumer<Control.Lost> onLost) {
      var arrivals = new Arrivals(launch, onLost);
      try {
        if (!complete(arrivals, LOG_MISSING_AFTER)) {
          LOG.info(
              "of {} processes these have not come yet, and are waited for: rank {}",
              launch.size(),
              String.join(", ", arrivals.absent()));
        }
        if (!complete(arrivals, MEETING.minus(LOG_MISSING_AFTER))) {
          throw new UserException(
              "of %s processes these did not come within %s minutes: rank %s",
              launch.size(), MEETING.toMinutes(), String.join(", ", arrivals.absent()));
        }
      } catch (IOException e) {
        if (!arrivals.complete()) {
          throw new UserException("cannot wait for the other processes: " + e.getMessage(), e);
        }
      }
      return arrivals.control;
    }

    /** Lets others in for so long, or until all are here: whether they are. */
    private boolean complete(Arrivals arrivals, Duration atMost) throws IOException {
      var deadline = System.nanoTime() + atMost.toNanos();
      try {
        while (!arrivals.complete()) {
          server.setSoTimeout((int) Math.max(1, (deadline - System.nanoTime()) / 1_000_000));
          var socket = server.accept();
          // on a thread of its own: a stranger that dribbles keeps nobody waiting
          Thread.ofVirtual().start(() -> arrivals.handshake(socket));
        }
      } catch (SocketTimeoutException e) {
        return arrivals.complete();
      }
      return true;
    }

    /** The others as they come. */
    private final class Arrivals {
      private final Launch launch;
      private final byte[] job;
      private final Control control;
      private final boolean[] here;

      Arrivals(Launch launch, Consumer<Control.Lost> onLost) {
        this.launch = launch;
        job = jobHash(launch);
        control = new Control(launch.rank(), launch.size(), onLost);
        here = new boolean[launch.size()];
        here[launch.rank()] = true;
      }

      synchronized boolean complete() {
        return absent().isEmpty();
      }

      synchronized List<String> absent() {
        return IntStream.range(0, here.length)
            .filter(rank -> !here[rank])
            .mapToObj(String::valueOf)
            .toList();
      }

      /** Lets one in, or sends a stranger away; the last one closes the door. */
      void handshake(Socket socket) {
        boolean kept = false;
        try {
          var greeting = ByteBuffer.wrap(readWithin(GREETING, socket, 4 + job.length + 4));
          kept = admit(socket, greeting);
        } catch (IOException e) {
          // a stranger, or one that will come again
        }
        if (!kept) {
          Rendezvous.close(socket);
        } else if (complete()) {
          Meeting.this.close(); // nobody is waited for any more
        }
      }

      private synchronized boolean admit(Socket socket, ByteBuffer greeting) throws IOException {
        int magic = greeting.getInt();
        var theirJob = new byte[job.length];
        greeting.get(theirJob);
        int rank = greeting.getInt();
        boolean ours =
            magic == MAGIC
                && Arrays.equals(theirJob, job)
                && rank > 0
                && rank < launch.size()
                && !here[rank];
        new DataOutputStream(socket.getOutputStream()).writeInt(ours ? MAGIC : 0);
        if (ours) {
          control.add(rank, socket); // others may come much later
          here[rank] = true;
        }
        return ours;
      }
    }

    @Override
    public void close() {
      Rendezvous.close(server);
    }
  }

  /** Reads so many bytes, which must all be there in time. */
  private static byte[] readWithin(Duration atMost, Socket socket, int count) throws IOException {
    long deadline = System.nanoTime() + atMost.toNanos();
    var bytes = new byte[count];
    for (int read = 0; read < count; ) {
      socket.setSoTimeout((int) Math.max(1, (deadline - System.nanoTime()) / 1_000_000));
      int some = socket.getInputStream().read(bytes, read, count - read);
      if (some < 0 || System.nanoTime() > deadline) {
        throw new IOException("it has not said who it is");
      }
      read += some;
    }
    return bytes;
  }

  static void close(Closeable connection) {
    try {
      connection.close();
    } catch (IOException e) {
      // nobody waits for it any more
    }
  }

  /**
   * Opens the first process's port: {@code port} or one of the next, since torchrun's own store may
   * sit on it; any free one for 0.
   */
  public static Meeting listen(int port) {
    IOException last = null;
    for (int i = 0; i < (port == 0 ? 1 : PORTS); i++) {
      try {
        var server = new ServerSocket();
        server.setReuseAddress(true);
        server.bind(new InetSocketAddress(port == 0 ? 0 : (port + i) % 65_536), 1024);
        return new Meeting(server);
      } catch (IOException e) {
        last = e;
        if (!(e instanceof BindException)) {
          break;
        }
      }
    }
    throw new UserException(
        "cannot open a port for the other processes: " + last.getMessage(), last);
  }

  /**
   * Connects to the first process, which may come later.
   *
   * @param addresses its host's, tried in turn
   * @param port the first port that it may have
   * @param ports how many ports it may have from there
   * @throws UserException when it cannot be reached in time
   */
  public static Control connect(
      Launch launch, List<String> addresses, int port, int ports, Consumer<Control.Lost> onLost) {
    var deadline = System.nanoTime() + MEETING.toNanos();
    String last = "nobody answers";
    while (System.nanoTime() < deadline) {
      for (var address : addresses) {
        for (int i = 0; i < ports; i++) {
          try {
            var socket =
                meet(launch, new InetSocketAddress(InetAddress.getByName(address), port + i));
            if (socket.isPresent()) {
              var control = new Control(launch.rank(), launch.size(), onLost);
              control.add(0, socket.get());
              return control;
            }
          } catch (IOException e) {
            last = e.getMessage();
          }
        }
      }
      try {
        Thread.sleep(100);
      } catch (InterruptedException e) {
        Thread.currentThread().interrupt();
        break;
      }
    }
    throw new UserException(
        "the first process could not be reached within %s minutes at %s, port %s%s (%s)",
        MEETING.toMinutes(),
        String.join(", ", addresses),
        port,
        ports == 1 ? "" : " to " + (port + ports - 1),
        last);
  }

  /** Connects and says who this is; empty when somebody else answers. */
  private static Optional<Socket> meet(Launch launch, InetSocketAddress address)
      throws IOException {
    var socket = new Socket();
    boolean kept = false;
    try {
      socket.connect(address, 2_000);
      socket.setSoTimeout((int) GREETING.toMillis());
      var out = new DataOutputStream(new BufferedOutputStream(socket.getOutputStream()));
      out.writeInt(MAGIC);
      out.write(jobHash(launch));
      out.writeInt(launch.rank());
      out.flush();
      kept = new DataInputStream(socket.getInputStream()).readInt() == MAGIC;
      return kept ? Optional.of(socket) : Optional.empty();
    } finally {
      if (!kept) {
        socket.close();
      }
    }
  }

  /** As {@link #connect(Launch, List, int, int, Consumer)}, at the launch's own address. */
  public static Control connect(Launch launch, Consumer<Control.Lost> onLost) {
    return connect(launch, List.of(launch.address().orElseThrow()), launch.port(), PORTS, onLost);
  }

  private static byte[] jobHash(Launch launch) {
    return Digests.sha256()
        .digest((launch.job() + "/" + launch.size()).getBytes(StandardCharsets.UTF_8));
  }
}
