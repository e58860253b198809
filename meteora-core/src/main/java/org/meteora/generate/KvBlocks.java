package org.meteora.generate;

import java.nio.IntBuffer;
import java.util.Arrays;
import java.util.BitSet;
import java.util.HashMap;
import java.util.LinkedHashSet;
import java.util.Map;

/**
 * Whose the blocks of keys and values are, by number; it has no tensors. A block that is full never
 * changes, and is found by its tokens, those before them and who routes them: sequences that begin
 * alike have the same blocks. One that nobody has any longer keeps what is in it until another
 * needs it; those given back first go first.
 */
final class KvBlocks {
  /** Content in terms of the content before it, so that equal contents are equal in all. */
  private record Content(long before, IntBuffer tokens) {}

  private static final long NOTHING = -1;

  private final int size;
  private final int[] users;
  private final Content[] contents; // of those that are found
  private final long[] names; // of what is in a full block; equal contents have the same
  private final Map<Content, Integer> found = new HashMap<>();
  private final BitSet empty = new BitSet();
  private final LinkedHashSet<Integer> kept = new LinkedHashSet<>(); // nobody's, not empty
  private long nextName;
  private int taken;

  /**
   * @param count blocks
   * @param size tokens of a block
   */
  KvBlocks(int count, int size) {
    this.size = size;
    users = new int[count];
    contents = new Content[count];
    names = new long[count];
    empty.set(0, count);
  }

  int count() {
    return users.length;
  }

  /** Tokens of a block. */
  int size() {
    return size;
  }

  /** Blocks that so many tokens take. */
  int of(int tokens) {
    return (tokens + size - 1) / size;
  }

  /** Blocks that somebody has. */
  int taken() {
    return taken;
  }

  /** Blocks that can be taken. */
  int free() {
    return users.length - taken;
  }

  /**
   * The blocks that hold what these tokens begin with, in order.
   *
   * @param routing who routes them; negative: nothing is found
   * @param length only so many tokens are looked at
   */
  int[] find(int routing, int[] tokens, int length) {
    var blocks = new int[routing < 0 ? 0 : length / size];
    long before = root(routing);
    for (int i = 0; i < blocks.length; i++) {
      var block = found.get(content(before, tokens, i));
      if (block == null) {
        return Arrays.copyOf(blocks, i);
      }
      blocks[i] = block;
      before = names[block];
    }
    return blocks;
  }

  private static long root(int routing) {
    return -2L - routing;
  }

  private Content content(long before, int[] tokens, int index) {
    var its = Arrays.copyOfRange(tokens, index * size, (index + 1) * size);
    return new Content(before, IntBuffer.wrap(its));
  }

  /** How many of these blocks nobody has: sharing them leaves so many fewer to take. */
  int unused(int[] blocks) {
    return (int) Arrays.stream(blocks).filter(block -> users[block] == 0).count();
  }

  /** One more has these blocks. */
  void share(int[] blocks) {
    for (int block : blocks) {
      if (users[block]++ == 0) {
        kept.remove(block);
        taken++;
      }
    }
  }

  /**
   * A block of one's own; what was in it is forgotten.
   *
   * @throws IllegalStateException when all are taken
   */
  int take() {
    int block = empty.nextSetBit(0); // the lowest: memory may be had only once it is written
    if (block >= 0) {
      empty.clear(block);
    } else if (!kept.isEmpty()) {
      block = kept.removeFirst();
      found.remove(contents[block]);
      contents[block] = null;
    } else {
      throw new IllegalStateException("all " + users.length + " blocks are taken");
    }
    users[block] = 1;
    names[block] = NOTHING;
    taken++;
    return block;
  }

  /**
   * A sequence's block is full from now on.
   *
   * @param table the sequence's blocks; those before are full
   * @param routing who routes it; negative: it is not to be found
   */
  void fill(int[] table, int index, int routing, int[] tokens) {
    int block = table[index];
    if (routing < 0 || names[block] != NOTHING) {
      return;
    }
    var content = content(index == 0 ? root(routing) : names[table[index - 1]], tokens, index);
    var other = found.putIfAbsent(content, block);
    if (other == null) {
      contents[block] = content;
      names[block] = nextName++;
    } else { // two were computed side by side
      names[block] = names[other];
    }
  }

  /** One fewer has these blocks. The last are given up first: without them the others are found. */
  void give(int[] table) {
    for (int i = table.length - 1; i >= 0; i--) {
      int block = table[i];
      if (--users[block] > 0) {
        continue;
      }
      taken--;
      if (contents[block] == null) {
        empty.set(block);
      } else {
        kept.addLast(block);
      }
    }
  }
}
