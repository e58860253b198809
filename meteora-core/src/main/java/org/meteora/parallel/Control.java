package org.meteora.parallel;

import java.io.BufferedInputStream;
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
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import org.meteora.UserException;

/**
 * One TCP connection from every process to the first one, kept for the whole run. It carries what
 * must be known before anything else works (NCCL's id, whether all have the same settings), small
 * numbers and texts, and signs of life: a process that ends without a word, or is silent for {@link
 * #SILENCE}, is lost, and so is the run.
 *
 * <p>Tensors do not go this way: NCCL and MPI move them.
 */
public final class Control implements AutoCloseable {
  /** After so long without a sign of life a process counts as lost. */
  public static final Duration SILENCE = Duration.ofSeconds(20);

  private static final Duration HEARTBEAT = Duration.ofSeconds(2);
  private static final Duration MEETING = Duration.ofMinutes(5);
  private static final int PORTS = 16;
  private static final int MAGIC = 0x4d455445;
  private static final int LARGEST = 1 << 30;

  private enum Kind {
    DATA,
    HEARTBEAT,
    FAILED,
    BYE
  }

  private final int rank;
  private final int size;
  private final Consumer<Lost> onLost;
  private final List<Peer> peers = new ArrayList<>();
  private volatile boolean closing;

  /**
   * The run has lost a process.
   *
   * @param rank which; −1 when this process cannot know
   * @param message what happened, one line
   */
  public record Lost(int rank, String message) {}

  private static final class Peer {
    private final int rank;
    private final Socket socket;
    private final DataInputStream in;
    private final DataOutputStream out;
    private final BlockingQueue<byte[]> received = new LinkedBlockingQueue<>();
    private volatile boolean gone;

    private Peer(int rank, Socket socket) throws IOException {
      this.rank = rank;
      this.socket = socket;
      socket.setTcpNoDelay(true);
      socket.setSoTimeout((int) SILENCE.toMillis());
      in = new DataInputStream(new BufferedInputStream(socket.getInputStream()));
      out = new DataOutputStream(new BufferedOutputStream(socket.getOutputStream()));
    }

    private void send(Kind kind, byte[] bytes) throws IOException {
      synchronized (out) {
        out.writeByte(kind.ordinal());
        out.writeInt(bytes.length);
        out.write(bytes);
        out.flush();
      }
    }
  }

  private Control(int rank, int size, Consumer<Lost> onLost) {
    this.rank = rank;
    this.size = size;
    this.onLost = onLost;
  }

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
    public Control await(Launch launch, Consumer<Lost> onLost) {
      var control = new Control(launch.rank(), launch.size(), onLost);
      var deadline = System.nanoTime() + MEETING.toNanos();
      var here = new Peer[launch.size()];
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
                    && here[theirs] == null;
            out.writeInt(ours ? MAGIC : 0);
            out.flush();
            if (!ours) {
              socket.close();
              continue;
            }
            here[theirs] = new Peer(theirs, socket);
            missing--;
          } catch (IOException e) {
            socket.close(); // a stranger, or one that will come again
          }
        }
      } catch (SocketTimeoutException e) {
        var absent = new ArrayList<String>();
        for (int i = 1; i < here.length; i++) {
          if (here[i] == null) {
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
      control.start(Arrays.asList(here).subList(1, here.length));
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
      Launch launch, List<String> addresses, int port, int ports, Consumer<Lost> onLost) {
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
              control.start(List.of(new Peer(0, socket.get())));
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
  public static Control connect(Launch launch, Consumer<Lost> onLost) {
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

  private void start(List<Peer> connected) {
    peers.addAll(connected);
    for (var peer : peers) {
      Thread.ofPlatform().daemon().name("rank-" + peer.rank).start(() -> read(peer));
    }
    Thread.ofPlatform().daemon().name("heartbeat").start(this::beat);
  }

  private void read(Peer peer) {
    try {
      while (true) {
        int kind = peer.in.readByte();
        int length = peer.in.readInt();
        if (length < 0 || length > LARGEST || kind < 0 || kind >= Kind.values().length) {
          throw new IOException("it sent something else than expected");
        }
        var bytes = peer.in.readNBytes(length);
        if (bytes.length < length) {
          throw new IOException("its connection ended");
        }
        switch (Kind.values()[kind]) {
          case DATA -> peer.received.add(bytes);
          case HEARTBEAT -> {}
          case FAILED -> {
            peer.gone = true;
            lost(new Lost(-1, new String(bytes, StandardCharsets.UTF_8)), peer);
            return;
          }
          case BYE -> {
            peer.gone = true;
            return;
          }
        }
      }
    } catch (SocketTimeoutException e) {
      silent(peer, "has not answered for " + SILENCE.toSeconds() + " s");
    } catch (IOException e) {
      silent(peer, "ended without a word");
    }
  }

  private void silent(Peer peer, String how) {
    peer.gone = true;
    if (!closing) {
      lost(new Lost(peer.rank, "rank " + peer.rank + " was lost: it " + how), peer);
    }
  }

  /** The first process passes it on, so that all know the reason. */
  private void lost(Lost lost, Peer from) {
    synchronized (this) {
      if (closing) {
        return;
      }
      closing = true;
    }
    tellOthers(lost.message(), from);
    onLost.accept(lost);
  }

  private void tellOthers(String message, Peer except) {
    for (var peer : peers) {
      if (peer != except && !peer.gone) {
        try {
          peer.send(Kind.FAILED, message.getBytes(StandardCharsets.UTF_8));
        } catch (IOException e) {
          // it has ended as well
        }
      }
    }
  }

  private void beat() {
    while (!closing) {
      for (var peer : peers) {
        if (!peer.gone) {
          try {
            peer.send(Kind.HEARTBEAT, new byte[0]);
          } catch (IOException e) {
            // its reader notices
          }
        }
      }
      try {
        Thread.sleep(HEARTBEAT.toMillis());
      } catch (InterruptedException e) {
        return;
      }
    }
  }

  /** Ends the run of all others: this process has failed and says why in one line. */
  public void fail(String message) {
    synchronized (this) {
      if (closing) {
        return;
      }
      closing = true;
    }
    tellOthers("rank " + rank + ": " + message, null);
    if (rank > 0) {
      // until the first process has said it: whoever started them may end all when this one ends
      awaitGone(Duration.ofSeconds(5));
    }
  }

  private void awaitGone(Duration atMost) {
    var deadline = System.nanoTime() + atMost.toNanos();
    while (peers.stream().anyMatch(peer -> !peer.gone) && System.nanoTime() < deadline) {
      try {
        Thread.sleep(5);
      } catch (InterruptedException e) {
        Thread.currentThread().interrupt();
        return;
      }
    }
  }

  private static byte[] take(Peer peer) {
    try {
      while (true) {
        var bytes = peer.received.poll(1, TimeUnit.SECONDS);
        if (bytes != null) {
          return bytes;
        }
        if (peer.gone) {
          // whoever is told of lost processes ends this one
          throw new UserException("rank " + peer.rank + " is gone");
        }
      }
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new UserException("interrupted while waiting for rank " + peer.rank);
    }
  }

  private static void send(Peer peer, byte[] bytes) {
    try {
      peer.send(Kind.DATA, bytes);
    } catch (IOException e) {
      throw new UserException("rank " + peer.rank + " cannot be reached: " + e.getMessage(), e);
    }
  }

  /** Everybody's bytes at the first process, in the order of ranks; an empty list at all others. */
  public List<byte[]> gather(byte[] mine) {
    if (rank > 0) {
      send(peers.getFirst(), mine);
      return List.of();
    }
    var result = new ArrayList<byte[]>();
    result.add(mine);
    peers.forEach(peer -> result.add(take(peer)));
    return result;
  }

  /** The first process's bytes, at all. */
  public byte[] broadcast(byte[] ofFirst) {
    if (rank > 0) {
      return take(peers.getFirst());
    }
    peers.forEach(peer -> send(peer, ofFirst));
    return ofFirst;
  }

  public int rank() {
    return rank;
  }

  public int size() {
    return size;
  }

  /** Leaves; the first process waits until all have. */
  @Override
  public void close() {
    synchronized (this) {
      if (closing) {
        peers.forEach(Control::close);
        return;
      }
      closing = true;
    }
    for (var peer : peers) {
      try {
        peer.send(Kind.BYE, new byte[0]);
      } catch (IOException e) {
        peer.gone = true;
      }
    }
    if (rank == 0) {
      awaitGone(SILENCE);
    }
    peers.forEach(Control::close);
  }

  private static void close(Peer peer) {
    try {
      peer.socket.close();
    } catch (IOException e) {
      // closed already
    }
  }
}
