package org.meteora.parallel;

import ai.djl.ndarray.NDArray;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import org.meteora.UserException;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.PeerMemory;
import org.meteora.cuda.driver.Stream;
import org.meteora.tensor.Ops;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Constants on the GPUs of one machine: each process copies the others' parts out of their memory,
 * without their help. The copy engines do it, and the multiprocessors are left to the products;
 * none waits for another's to begin.
 *
 * @param addresses by part and rank
 */
record PeerConstants(
    PeerMemory memory,
    PeerMemory.Copies copies,
    Aside aside,
    int rank,
    long[][] addresses,
    long[] bytes)
    implements Collective.Constants {
  private static final Logger LOG = LoggerFactory.getLogger(PeerConstants.class);

  /**
   * All processes call it together; empty in all of them where one cannot read another's memory.
   *
   * @param parts of this process; what they hold has been queued on libtorch's stream
   */
  static Optional<Collective.Constants> of(Collective all, Cuda cuda, List<NDArray> parts) {
    cuda.makeCurrent();
    Stream.LIBTORCH.synchronize();
    var each = all.broadcast(joined(all.gather(lend(cuda, parts))));
    var memory = new PeerMemory(cuda);
    Optional<Collective.Constants> result = Optional.empty();
    try {
      var addresses = open(memory, split(each, all.size()), all.rank(), parts);
      var bytes = parts.stream().mapToLong(ControlledCollective::bytes).toArray();
      var copies = PeerMemory.copies();
      var aside = new Aside(cuda, Stream.create(cuda));
      result = Optional.of(new PeerConstants(memory, copies, aside, all.rank(), addresses, bytes));
    } catch (UserException e) {
      LOG.debug("other processes' memory is not read directly: {}", e.getMessage());
    }
    if (all.sum(new double[] {result.isPresent() ? 1 : 0})[0] < all.size()) {
      result.ifPresentOrElse(Collective.Constants::close, memory::close);
      return Optional.empty();
    }
    return result;
  }

  /** The machine, and what others need for each part; nothing where this process cannot lend. */
  private static byte[] lend(Cuda cuda, List<NDArray> parts) {
    try {
      var machine = Files.readString(Path.of("/proc/sys/kernel/random/boot_id"));
      var lent = new ArrayList<byte[]>();
      lent.add(machine.getBytes(StandardCharsets.UTF_8));
      for (var part : parts) {
        lent.add(PeerMemory.lend(cuda, Ops.dataPointer(part)));
      }
      return joined(lent);
    } catch (IOException | UserException e) {
      LOG.debug("this process's memory is not lent: {}", e.getMessage());
      return new byte[0];
    }
  }

  private static long[][] open(
      PeerMemory memory, List<byte[]> everybody, int rank, List<NDArray> parts) {
    var addresses = new long[parts.size()][everybody.size()];
    var own = split(everybody.get(rank), parts.size() + 1);
    for (int from = 0; from < everybody.size(); from++) {
      var lent = split(everybody.get(from), parts.size() + 1);
      if (!Arrays.equals(lent.getFirst(), own.getFirst())) {
        throw new UserException("rank " + from + " is on another machine");
      }
      for (int i = 0; i < parts.size(); i++) {
        addresses[i][from] =
            from == rank ? Ops.dataPointer(parts.get(i)) : memory.open(lent.get(i + 1));
      }
    }
    return addresses;
  }

  /** Each with its length before it. */
  private static byte[] joined(List<byte[]> some) {
    var result = ByteBuffer.allocate(some.stream().mapToInt(each -> 4 + each.length).sum());
    some.forEach(each -> result.putInt(each.length).put(each));
    return result.array();
  }

  private static List<byte[]> split(byte[] joined, int count) {
    var buffer = ByteBuffer.wrap(joined);
    var result = new ArrayList<byte[]>();
    while (buffer.hasRemaining()) {
      var each = new byte[buffer.getInt()];
      buffer.get(each);
      result.add(each);
    }
    if (result.size() != count) {
      throw new UserException("a process lends nothing");
    }
    return result;
  }

  @Override
  public Collective.Queued gather(int which, NDArray buffer) {
    long to = Ops.dataPointer(buffer);
    return aside.queue(
        stream -> {
          // not all from the same one at once
          int size = addresses[which].length;
          for (int i = 1; i <= size; i++) {
            int from = (rank + i) % size;
            copies.copy(to + from * bytes[which], addresses[which][from], bytes[which], stream);
          }
        });
  }

  @Override
  public void close() {
    aside.close();
    memory.close();
  }
}
