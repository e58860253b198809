package org.meteora.generate;

import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.function.IntPredicate;

/**
 * Decides which sequences run: those that came first are admitted as soon as there is memory, and
 * when there is too little for all that run, those that joined last are preempted: they wait in
 * front, with what they have so far. It knows sequences by numbers, their tokens, and how much
 * memory there is; no tensors.
 *
 * <p>Keys and values of the sequences that run are a table of as many columns for each as the
 * longest needs, taken in blocks of columns.
 */
final class Scheduler {
  /**
   * @param sequences that may run at once, at least 1
   * @param kvCapacity columns there is memory for, of all that run
   * @param block columns that are taken at a time
   * @param prefillTokens of prompts that may join together, padding included; a single sequence may
   *     have more
   * @param pads whether prompts that join together are padded to one length
   */
  record Limits(int sequences, long kvCapacity, int block, long prefillTokens, boolean pads) {}

  /**
   * What to do before the next step, in this order.
   *
   * @param preempted those that are to wait again
   * @param admitted those that join
   * @param rejected those for which there is too little memory even alone; they are gone
   */
  record Plan(List<Integer> preempted, List<Integer> admitted, List<Integer> rejected) {}

  private final IntPredicate wanted;
  private Limits limits;
  private int maxRunning;

  /** Whether the last that were admitted were not more because of their prompts' length alone. */
  private boolean filling;

  /** Places that nobody had, summed over the steps since somebody was last admitted. */
  private int idle;

  private final ArrayDeque<Integer> waiting = new ArrayDeque<>();
  private final List<Integer> running = new ArrayList<>(); // in the order in which they joined
  private final Map<Integer, Integer> tokens = new HashMap<>();
  private final Map<Integer, Integer> known = new HashMap<>();

  Scheduler(Limits limits) {
    this(limits, sequence -> true);
  }

  /**
   * @param wanted whether a sequence for which there is a place is still to be run; one that is not
   *     is dropped
   */
  Scheduler(Limits limits, IntPredicate wanted) {
    this.limits = limits;
    this.wanted = wanted;
    this.maxRunning = limits.sequences;
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
   * One that runs, or was to join, found too little memory: it waits in front, and as many as run
   * now are all that run from now on.
   */
  void preempt(int sequence) {
    running.remove((Integer) sequence);
    waiting.addFirst(sequence);
    maxRunning = Math.max(1, running.size());
  }

  /** From now on so many at once, with memory for so many columns. */
  void limit(int sequences, long kvCapacity) {
    limits = new Limits(sequences, kvCapacity, limits.block, limits.prefillTokens, limits.pads);
    maxRunning = sequences;
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

  /**
   * Who is preempted and who is admitted now; they count as waiting and as running from now on.
   *
   * @param mayAdmit whether any may join
   */
  Plan next(boolean mayAdmit) {
    var preempted = new ArrayList<Integer>();
    while (running.size() > 1 && columns(running.size(), longest()) > limits.kvCapacity) {
      int last = running.removeLast();
      waiting.addFirst(last);
      preempted.add(last);
    }
    var admitted = new ArrayList<Integer>();
    var rejected = new ArrayList<Integer>();
    if (running.size() == 1 && columns(1, longest()) > limits.kvCapacity) {
      rejected.add(running.removeFirst());
      tokens.remove(rejected.getFirst());
    }
    if (mayAdmit && preempted.isEmpty() && hasRoom()) {
      admit(admitted, rejected);
    }
    return new Plan(preempted, admitted, rejected);
  }

  /**
   * A prefill of several costs less than several of one: a few wait for each other, as long as what
   * stands empty meanwhile is less than one step of all.
   */
  private boolean hasRoom() {
    int free = maxRunning - running.size();
    if (running.isEmpty() || free == 0 || waiting.isEmpty()) {
      return running.isEmpty();
    }
    idle += free;
    int few = Math.max(1, maxRunning / 16);
    return filling || free >= Math.min(few, waiting.size()) || idle >= maxRunning;
  }

  private void admit(List<Integer> admitted, List<Integer> rejected) {
    filling = false;
    idle = 0;
    long width = 0;
    long sum = 0;
    int longest = longest();
    while (!waiting.isEmpty() && running.size() < maxRunning) {
      int first = waiting.getFirst();
      if (!wanted.test(first)) {
        waiting.removeFirst();
        tokens.remove(first);
        continue;
      }
      int its = tokens.get(first);
      if (columns(1, its) > limits.kvCapacity) {
        waiting.removeFirst();
        tokens.remove(first);
        rejected.add(first);
        continue;
      }
      // with padding a prefill is as wide as the one needs of which the least is known
      width = Math.max(width, its - known.get(first));
      sum += its - known.get(first);
      long computed = limits.pads ? (admitted.size() + 1) * width : sum;
      if (!admitted.isEmpty() && computed > limits.prefillTokens) {
        filling = true;
        return;
      }
      // one block more than it needs now: else it could be preempted at once
      int with = Math.max(longest, its);
      if (!running.isEmpty()
          && columns(running.size() + 1, with + limits.block) > limits.kvCapacity) {
        return;
      }
      longest = with;
      waiting.removeFirst();
      running.add(first);
      admitted.add(first);
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
