package org.meteora.parallel;

import java.io.BufferedInputStream;
import java.io.BufferedOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.net.Socket;
import java.net.SocketTimeoutException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.locks.ReentrantLock;
import java.util.function.Consumer;
import org.meteora.UserException;

/**
 * One TCP connection from every process to the first one, kept for the whole run. It carries what
 * must be known before anything else works (NCCL's id, whether all have the same settings), small
 * numbers and texts, and signs of life: a process that ends without a word, or is silent for {@link
 * #SILENCE}, is lost, and so is the run.
 *
 * <p>Tensors do not go this way: NCCL and MPI move them.
 *
 * <p>Long, because both ends of each message stand beside each other.
 */
public final class Control implements Exchange, Messages, AutoCloseable {
  /** After so long without a sign of life a process counts as lost. */
  public static final Duration SILENCE = Duration.ofSeconds(20);

  private static final Duration HEARTBEAT = Duration.ofSeconds(2);

  /** Signs of life that are so late mean that this process, or its machine, was stopped. */
  private static final Duration LATE = Duration.ofSeconds(8);

  private static final int LARGEST = 1 << 30;

  private enum Kind {
    DATA,
    HEARTBEAT,
    FAILED,
    BYE,
    GIVEN_UP,
    /** Asks the first process for a number, or is its answer. */
    NEXT,
    /** For the first process, whenever it asks ({@link Control#received}). */
    MESSAGE
  }

  private final int rank;
  private final int size;
  private final Consumer<Lost> onLost;

  /** By rank; the first process has all others, every other the first. */
  private final List<Peer> peers = new CopyOnWriteArrayList<>();

  /** In the first process: the next number, and messages that have come. */
  private final AtomicLong next = new AtomicLong();

  private final BlockingQueue<byte[]> messages = new LinkedBlockingQueue<>();

  private volatile boolean closing;

  /** When the last signs of life were sent, and since when that has not been late. */
  private volatile long beaten = System.nanoTime();

  private volatile long awake = System.nanoTime();

  /**
   * The run has lost a process.
   *
   * @param rank which; −1 when this process cannot know; its own when the others have given it up
   *     and have said so
   * @param message what happened, one line
   */
  public record Lost(int rank, String message) {}

  private static final class Peer {
    private final int rank;
    private final Socket socket;
    private final DataInputStream in;
    private final DataOutputStream out;
    private final ReentrantLock sending = new ReentrantLock();
    private final BlockingQueue<byte[]> received = new LinkedBlockingQueue<>();
    private final BlockingQueue<byte[]> numbers = new LinkedBlockingQueue<>();
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
      sending.lock();
      try {
        write(kind, bytes);
      } finally {
        sending.unlock();
      }
    }

    /**
     * Not while something else is being sent, which does not end where the other was stopped; nor
     * to one that has ended, as its reader notices.
     */
    private void sendWithin(Duration atMost, Kind kind, String text) {
      try {
        if (sending.tryLock(atMost.toMillis(), TimeUnit.MILLISECONDS)) {
          try {
            write(kind, text.getBytes(StandardCharsets.UTF_8));
          } finally {
            sending.unlock();
          }
        }
      } catch (IOException e) {
        // it has ended
      } catch (InterruptedException e) {
        Thread.currentThread().interrupt();
      }
    }

    private void write(Kind kind, byte[] bytes) throws IOException {
      out.writeByte(kind.ordinal());
      out.writeInt(bytes.length);
      out.write(bytes);
      out.flush();
    }
  }

  /** Of a process that has met nobody yet. */
  Control(int rank, int size, Consumer<Lost> onLost) {
    this.rank = rank;
    this.size = size;
    this.onLost = onLost;
  }

  /**
   * Begins to listen to a process and to send it signs of life, though others may still be missing.
   *
   * @param socket its connection, which has said who it is
   */
  void add(int peerRank, Socket socket) throws IOException {
    var peer = new Peer(peerRank, socket);
    peers.add(peer);
    peers.sort(Comparator.comparingInt(each -> each.rank));
    Thread.ofPlatform().daemon().name("rank-" + peer.rank).start(() -> read(peer));
    if (peers.size() == 1) {
      Thread.ofPlatform().daemon().name("heartbeat").start(this::beat);
    }
  }

  private void read(Peer peer) {
    try {
      while (true) {
        int number = kind(peer);
        int length = peer.in.readInt();
        if (length < 0 || length > LARGEST || number < 0 || number >= Kind.values().length) {
          throw new IOException("it sent something else than expected");
        }
        var bytes = peer.in.readNBytes(length);
        if (bytes.length < length) {
          throw new IOException("its connection ended");
        }
        var kind = Kind.values()[number];
        switch (kind) {
          case DATA -> peer.received.add(bytes);
          case HEARTBEAT -> {}
          case MESSAGE -> messages.add(bytes);
          case NEXT -> {
            if (rank > 0) {
              peer.numbers.add(bytes);
            } else {
              var given = ByteBuffer.allocate(Long.BYTES).putLong(next.getAndIncrement());
              peer.send(Kind.NEXT, given.array());
            }
          }
          case BYE, FAILED, GIVEN_UP -> {
            if (kind != Kind.BYE) {
              var text = new String(bytes, StandardCharsets.UTF_8);
              lost(new Lost(kind == Kind.FAILED ? -1 : rank, text), peer);
            }
            peer.gone = true; // not before: whoever waits for it would fail, before why is said
            return;
          }
        }
      }
    } catch (SocketTimeoutException e) {
      giveUp(peer);
    } catch (IOException e) {
      silent(peer, "ended without a word");
    }
  }

  /** The next message's kind. The others are given time when this process was itself stopped. */
  private int kind(Peer peer) throws IOException {
    while (true) {
      try {
        return peer.in.readByte();
      } catch (SocketTimeoutException e) {
        long now = System.nanoTime();
        if (now - beaten < LATE.toNanos() && now - awake > SILENCE.toNanos()) {
          throw e;
        }
      }
    }
  }

  /**
   * One that wakes up later learns that the others have ended because of it, and need not say so.
   */
  private void giveUp(Peer peer) {
    if (!closing) {
      var message = "this process had not answered for " + SILENCE.toSeconds() + " s";
      peer.sendWithin(Duration.ZERO, Kind.GIVEN_UP, message);
    }
    silent(peer, "has not answered for " + SILENCE.toSeconds() + " s");
  }

  private void silent(Peer peer, String how) {
    if (!closing) {
      lost(new Lost(peer.rank, "rank " + peer.rank + " was lost: it " + how), peer);
    }
    peer.gone = true;
  }

  /** The first process passes it on, so that all know the reason. */
  private void lost(Lost lost, Peer from) {
    if (isFirstToEnd()) {
      tellOthers(lost.message(), from);
      onLost.accept(lost);
    }
  }

  private synchronized boolean isFirstToEnd() {
    boolean first = !closing;
    closing = true;
    return first;
  }

  private void tellOthers(String message, Peer except) {
    for (var peer : peers) {
      if (peer != except && !peer.gone) {
        peer.sendWithin(HEARTBEAT, Kind.FAILED, message);
      }
    }
  }

  private void beat() {
    while (!closing) {
      long now = System.nanoTime();
      if (now - beaten > LATE.toNanos()) {
        awake = now;
      }
      beaten = now;
      for (var peer : peers) {
        if (!peer.gone) {
          peer.sendWithin(Duration.ZERO, Kind.HEARTBEAT, "");
        }
      }
      try {
        Thread.sleep(HEARTBEAT.toMillis());
      } catch (InterruptedException e) {
        return;
      }
    }
  }

  @Override
  public void fail(String message) {
    if (isFirstToEnd()) {
      tellOthers("rank " + rank + ": " + message, null);
      if (rank > 0) {
        // until the first process has said it: whoever started them may end all when this one ends
        awaitGone(Duration.ofSeconds(5));
      }
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

  private static byte[] take(Peer peer, BlockingQueue<byte[]> from) {
    try {
      while (true) {
        boolean gone = peer.gone; // what it sent before it left has come by then
        var bytes = from.poll(gone ? 0 : 1, TimeUnit.SECONDS);
        if (bytes != null) {
          return bytes;
        }
        if (gone) {
          // whoever is told of lost processes ends this one
          throw new UserException("rank " + peer.rank + " is gone");
        }
      }
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new UserException("interrupted while waiting for rank " + peer.rank);
    }
  }

  private static void send(Peer peer, Kind kind, byte[] bytes) {
    try {
      peer.send(kind, bytes);
    } catch (IOException e) {
      throw new UserException("rank " + peer.rank + " cannot be reached: " + e.getMessage(), e);
    }
  }

  @Override
  public List<byte[]> gather(byte[] mine) {
    if (rank > 0) {
      send(peers.getFirst(), Kind.DATA, mine);
      return List.of();
    }
    var result = new ArrayList<byte[]>();
    result.add(mine);
    peers.forEach(peer -> result.add(take(peer, peer.received)));
    return result;
  }

  @Override
  public byte[] broadcast(byte[] ofFirst) {
    if (rank > 0) {
      return take(peers.getFirst(), peers.getFirst().received);
    }
    peers.forEach(peer -> send(peer, Kind.DATA, ofFirst));
    return ofFirst;
  }

  @Override
  public void restartNumbers() {
    next.set(0);
  }

  @Override
  public long numbersGiven() {
    return next.get();
  }

  @Override
  public long nextNumber() {
    if (rank == 0) {
      return next.getAndIncrement();
    }
    var first = peers.getFirst();
    send(first, Kind.NEXT, new byte[0]);
    return ByteBuffer.wrap(take(first, first.numbers)).getLong();
  }

  @Override
  public void send(byte[] message) {
    send(peers.getFirst(), Kind.MESSAGE, message);
  }

  @Override
  public List<byte[]> received() {
    var result = new ArrayList<byte[]>();
    messages.drainTo(result);
    return result;
  }

  @Override
  public Messages messages() {
    return this;
  }

  @Override
  public int rank() {
    return rank;
  }

  @Override
  public int size() {
    return size;
  }

  /** Leaves; the first process waits until all have. */
  @Override
  public void close() {
    if (isFirstToEnd()) {
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
    }
    peers.forEach(peer -> Rendezvous.close(peer.socket));
  }
}
