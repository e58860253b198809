package org.meteora.generate;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.RepeatedTest;
import org.junit.jupiter.api.RepetitionInfo;
import org.junit.jupiter.api.Test;

/** Which blocks are whose, and what is found in them. */
class KvBlocksTest {
  private static int[] tokens(int... tokens) {
    return tokens;
  }

  /** A sequence's blocks, of which all full ones are computed. */
  private static int[] filled(KvBlocks blocks, int routing, int... tokens) {
    int[] table = blocks.find(routing, tokens, tokens.length);
    blocks.share(table);
    int known = table.length;
    while (table.length < blocks.of(tokens.length)) {
      table = Arrays.copyOf(table, table.length + 1);
      table[table.length - 1] = blocks.take();
    }
    for (int i = known; i < tokens.length / blocks.size(); i++) {
      blocks.fill(table, i, routing, tokens);
    }
    return table;
  }

  @Test
  void whoBeginsAlikeHasTheSameBlocks() {
    var blocks = new KvBlocks(8, 2);
    int[] first = filled(blocks, 0, 1, 2, 3, 4, 5);
    assertThat(blocks.taken()).isEqualTo(3);
    int[] second = filled(blocks, 0, 1, 2, 3, 4, 6);
    assertThat(second).startsWith(first[0], first[1]);
    assertThat(second[2]).as("a part of a block is one's own").isNotEqualTo(first[2]);
    assertThat(blocks.taken()).isEqualTo(4);
    assertThat(blocks.find(0, tokens(1, 2, 4, 4), 4)).containsExactly(first[0]);
    assertThat(blocks.find(0, tokens(3, 4, 1, 2), 4)).as("not the same before").isEmpty();
    assertThat(blocks.find(1, tokens(1, 2, 3, 4), 4)).as("routed by another").isEmpty();
    assertThat(blocks.find(-1, tokens(1, 2, 3, 4), 4)).as("alone").isEmpty();
    assertThat(blocks.find(0, tokens(1, 2, 3, 4), 3)).as("looked at").containsExactly(first[0]);
    blocks.give(first);
    assertThat(blocks.taken()).isEqualTo(3);
    assertThat(blocks.find(0, tokens(1, 2, 3, 4), 4)).hasSize(2);
  }

  @Test
  void whatNobodyHasIsKeptUntilItIsNeeded() {
    var blocks = new KvBlocks(4, 2);
    blocks.give(filled(blocks, 0, 1, 2, 3, 4));
    blocks.give(filled(blocks, 0, 5, 6));
    assertThat(blocks.free()).isEqualTo(4);
    blocks.share(blocks.find(0, tokens(1, 2), 2)); // used once more
    blocks.give(blocks.find(0, tokens(1, 2), 2));
    int unused = blocks.take();
    assertThat(blocks.find(0, tokens(1, 2, 3, 4, 5, 6), 6)).hasSize(2).doesNotContain(unused);
    blocks.take(); // given back first: the end of the first sequence
    assertThat(blocks.find(0, tokens(1, 2, 3, 4), 4)).hasSize(1);
    assertThat(blocks.find(0, tokens(5, 6), 2)).hasSize(1);
    blocks.take();
    assertThat(blocks.find(0, tokens(5, 6), 2)).isEmpty();
    blocks.take();
    assertThat(blocks.find(0, tokens(1, 2), 2)).isEmpty();
    assertThatThrownBy(blocks::take).hasMessageContaining("all 4 blocks");
  }

  @Test
  void twoThatWereComputedSideBySideGoOnAsOne() {
    var blocks = new KvBlocks(8, 2);
    int[] a = {blocks.take(), blocks.take()};
    int[] b = {blocks.take(), blocks.take()};
    blocks.fill(a, 0, 0, tokens(1, 2, 3, 4));
    blocks.fill(b, 0, 0, tokens(1, 2, 5, 6));
    blocks.fill(b, 1, 0, tokens(1, 2, 5, 6));
    assertThat(blocks.find(0, tokens(1, 2, 5, 6), 4)).containsExactly(a[0], b[1]);
    blocks.give(b);
    blocks.give(a);
    assertThat(blocks.find(0, tokens(1, 2, 5, 6), 4)).containsExactly(a[0], b[1]);
    assertThat(blocks.free()).isEqualTo(8);
  }

  /** Random sequences beside a plain list of which sequence has which block for what tokens. */
  @RepeatedTest(40)
  void noBlockIsTwosUnlessTheirTokensAreTheSame(RepetitionInfo repetition) {
    var random = new Random(repetition.getCurrentRepetition());
    int size = 1 + random.nextInt(4);
    var blocks = new KvBlocks(5 + random.nextInt(30), size);
    var content = new ArrayList<String>(); // of each block, as its owners wrote it
    for (int i = 0; i < blocks.count(); i++) {
      content.add("");
    }
    var tables = new ArrayList<int[]>();
    var owners = new ArrayList<List<String>>();
    for (int round = 0; round < 300; round++) {
      if (!tables.isEmpty() && random.nextInt(3) == 0) {
        int which = random.nextInt(tables.size());
        blocks.give(tables.remove(which));
        owners.remove(which);
      } else {
        int routing = random.nextInt(3) - 1;
        int[] its = random.ints(1 + random.nextInt(6 * size), 0, 2).toArray();
        int[] shared = blocks.find(routing, its, its.length);
        int needed = blocks.of(its.length) - shared.length;
        if (needed > blocks.free() - blocks.unused(shared)) {
          continue;
        }
        int[] table = filled(blocks, routing, its);
        var wrote = new ArrayList<String>();
        for (int i = 0; i < table.length; i++) {
          var all = Arrays.copyOf(its, Math.min(its.length, (i + 1) * size));
          wrote.add(routing + Arrays.toString(all));
          if (i >= shared.length) {
            content.set(table[i], wrote.get(i));
          }
        }
        tables.add(table);
        owners.add(wrote);
      }
      long distinct = tables.stream().flatMapToInt(Arrays::stream).distinct().count();
      assertThat(blocks.taken()).isEqualTo((int) distinct);
      assertThat(blocks.free()).isEqualTo(blocks.count() - (int) distinct);
      for (int i = 0; i < tables.size(); i++) {
        for (int j = 0; j < tables.get(i).length; j++) {
          assertThat(content.get(tables.get(i)[j])).isEqualTo(owners.get(i).get(j));
        }
      }
    }
  }
}
