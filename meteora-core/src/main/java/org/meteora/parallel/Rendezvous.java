package org.meteora.parallel;

import java.io.BufferedOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.net.BindException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.SocketTimeoutException;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.function.Consumer;
import org.meteora.UserException;

/** How the processes of a job find each other: the first one listens, all others connect to it. */
final class Rendezvous {
  private static final Duration MEETING = Duration.ofMinutes(5);

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
      var control = new Control(launch.rank(), launch.size(), onLost);
      var deadline = System.nanoTime() + MEETING.toNanos();
      var here = new boolean[launch.size()];
      try {
        for (int missing = launch.size() - 1; missing > 0; ) {
          server.setSoTimeout((int) Math.max(1, (deadline - System.nanoTime()) / 1_000_000));
          var socket = server.accept();
          try {
            socket.setSoTimeout(5_000);
            var in = new DataInputStream(socket.getInputStream());
            var out = new DataOutputStream(socket.getOutputStream());
            int magic = in.readInt();
            var job = in.readNBytes(32);
            int theirs = in.readInt();
            boolean ours =
                magic == MAGIC
                    && Arrays.equals(job, jobHash(launch))
                    && theirs > 0
                    && theirs < launch.size()
                    && !here[theirs];
            out.writeInt(ours ? MAGIC : 0);
            out.flush();
            if (!ours) {
              socket.close();
              continue;
            }
            control.add(theirs, socket); // others may come much later
            here[theirs] = true;
            missing--;
          } catch (IOException e) {
            socket.close(); // a stranger, or one that will come again
          }
        }
      } catch (SocketTimeoutException e) {
        var absent = new ArrayList<String>();
        for (int i = 1; i < here.length; i++) {
          if (!here[i]) {
            absent.add(String.valueOf(i));
          }
        }
        throw new UserException(
            "of "
                + launch.size()
                + " processes these did not come within "
                + MEETING.toMinutes()
                + " minutes: rank "
                + String.join(", ", absent));
      } catch (IOException e) {
        throw new UserException("cannot wait for the other processes: " + e.getMessage(), e);
      }
      return control;
    }

    @Override
    public void close() {
      try {
        server.close();
      } catch (IOException e) {
        // nobody waits for it any more
      }
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
        "cannot reach the first process at "
            + String.join(", ", addresses)
            + ", port "
            + port
            + (ports == 1 ? "" : " to " + (port + ports - 1))
            + " ("
            + last
            + ")");
  }

  /** Connects and says who this is; empty when somebody else answers. */
  private static Optional<Socket> meet(Launch launch, InetSocketAddress address)
      throws IOException {
    var socket = new Socket();
    boolean kept = false;
    try {
      socket.connect(address, 2_000);
      socket.setSoTimeout(5_000);
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
    try {
      return MessageDigest.getInstance("SHA-256")
          .digest((launch.job() + "/" + launch.size()).getBytes(StandardCharsets.UTF_8));
    } catch (NoSuchAlgorithmException e) {
      throw new IllegalStateException(e);
    }
  }
}
