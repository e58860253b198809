package org.meteora.generate;

import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * Decides which sequences run: those that came first join as soon as there is room, and when there
 * is too little for all that run, those that joined last are put back to wait in front, with what
 * they have so far. It knows sequences by numbers, their tokens, and how much memory there is; no
 * tensors.
 *
 * <p>Keys and values of the sequences that run are a table of as many columns for each as the
 * longest needs, taken in blocks of columns.
 */
final class Scheduler {
  /**
   * @param sequences that may run at once, at least 1
   * @param room columns there is memory for, of all that run together
   * @param block columns that are taken at a time
   * @param prefill tokens that may join before those that run take their next step, padding
   *     included; a single sequence may have more
   * @param together a sequence joins only when none runs
   */
  record Limits(int sequences, long room, int block, long prefill, boolean together) {}

  /**
   * What to do before the next step, in this order.
   *
   * @param leave those that are put back
   * @param join those that join
   * @param refused those for which there is too little memory even alone; they are gone
   */
  record Plan(List<Integer> leave, List<Integer> join, List<Integer> refused) {}

  private Limits limits;
  private int most;
  private final ArrayDeque<Integer> waiting = new ArrayDeque<>();
  private final List<Integer> running = new ArrayList<>(); // in the order in which they joined
  private final Map<Integer, Integer> tokens = new HashMap<>();
  private final Map<Integer, Integer> known = new HashMap<>();

  Scheduler(Limits limits) {
    this.limits = limits;
    this.most = limits.sequences;
  }

  /**
   * A sequence waits, behind those that do.
   *
   * @param known how many of its tokens need not be computed when it joins
   */
  void add(int sequence, int itsTokens, int known) {
    if (tokens.putIfAbsent(sequence, itsTokens) != null) {
      throw new IllegalArgumentException("sequence " + sequence + " is there already");
    }
    this.known.put(sequence, known);
    waiting.addLast(sequence);
  }

  /** A sequence that runs has one token more. */
  void grew(int sequence) {
    tokens.merge(sequence, 1, Integer::sum);
  }

  /**
   * One that was to join found too little memory: as many as run now are all that run from now on.
   */
  void putBack(int sequence) {
    running.remove((Integer) sequence);
    waiting.addFirst(sequence);
    most = Math.max(1, running.size());
  }

  /** From now on so many at once, with so much room. */
  void limit(int sequences, long room) {
    limits = new Limits(sequences, room, limits.block, limits.prefill, limits.together);
    most = sequences;
  }

  /** A sequence that runs has ended. */
  void remove(int sequence) {
    running.remove((Integer) sequence);
    tokens.remove(sequence);
  }

  int waiting() {
    return waiting.size();
  }

  int running() {
    return running.size();
  }

  /** Columns that those that run take. */
  long columns() {
    return running.isEmpty() ? 0 : columns(running.size(), longest());
  }

  /** Who leaves and who joins now; they count as put back and as running from now on. */
  Plan next() {
    var leave = new ArrayList<Integer>();
    while (running.size() > 1 && columns(running.size(), longest()) > limits.room) {
      int last = running.removeLast();
      waiting.addFirst(last);
      leave.add(last);
    }
    var join = new ArrayList<Integer>();
    var refused = new ArrayList<Integer>();
    if (running.size() == 1 && columns(1, longest()) > limits.room) {
      refused.add(running.removeFirst());
      tokens.remove(refused.getFirst());
    }
    if (leave.isEmpty() && mayJoin()) {
      join(join, refused);
    }
    return new Plan(leave, join, refused);
  }

  /** A prefill of several costs less than several of one: a few wait for each other. */
  private boolean mayJoin() {
    int free = most - running.size();
    int few = Math.max(1, most / 16);
    return running.isEmpty()
        || !limits.together && free > 0 && free >= Math.min(few, waiting.size());
  }

  private void join(List<Integer> join, List<Integer> refused) {
    long width = 0;
    int longest = longest();
    while (!waiting.isEmpty() && running.size() < most) {
      int first = waiting.getFirst();
      int its = tokens.get(first);
      if (columns(1, its) > limits.room) {
        waiting.removeFirst();
        tokens.remove(first);
        refused.add(first);
        continue;
      }
      // a prefill is as wide as the one needs of which the least is known
      width = Math.max(width, its - known.get(first));
      if (!join.isEmpty() && (join.size() + 1) * width > limits.prefill && !limits.together) {
        return;
      }
      // one block more than it needs now: else it could be put back at once
      int with = Math.max(longest, its);
      if (!running.isEmpty() && columns(running.size() + 1, with + limits.block) > limits.room) {
        return;
      }
      longest = with;
      waiting.removeFirst();
      running.add(first);
      join.add(first);
    }
  }

  private int longest() {
    return running.stream().mapToInt(tokens::get).max().orElse(0);
  }

  /** Columns that so many sequences take, of which the longest has so many tokens. */
  private long columns(int sequences, int longest) {
    return (long) sequences * ((longest + limits.block - 1) / limits.block * limits.block);
  }
}
