package org.meteora.generate;

import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.OptionalInt;

/**
 * Decides which sequences run and what blocks of keys and values they have: those that came first
 * are admitted as soon as there are blocks for them, and when one that runs finds none, those that
 * joined last are preempted: they wait in front, with what they have so far. It knows sequences by
 * numbers, their tokens, blocks and budgets; no tensors.
 */
final class Scheduler {
  /**
   * @param sequences that may run at once, at least 1
   * @param pads whether prompts that join together are padded to one length
   * @param pass as {@link DecodeSession.Provider#passTokens} says, in whole blocks
   */
  record Limits(int sequences, boolean pads, OptionalInt pass) {}

  /** What it asks about sequences. */
  interface Sequences {
    /** All tokens so far, of prompt and answer. */
    int[] tokens(int sequence);

    /** How many it may come to. */
    int most(int sequence);

    /** Who routes it, as a number; negative: it shares nothing. */
    int routing(int sequence);

    /**
     * Whether its prompt is run before others join, since they begin alike.
     *
     * @param known how many of its tokens are known
     */
    boolean goesAhead(int sequence, int known);

    /** Whether it is still to be run; one that is not is dropped. */
    boolean isWanted(int sequence);
  }

  /**
   * What to do before the next step, in this order.
   *
   * @param preempted those that are to wait again
   * @param admitted those that join
   * @param rejected those for which there are too few blocks even alone; they are gone
   */
  record Plan(List<Integer> preempted, List<Integer> admitted, List<Integer> rejected) {}

  /** What a sequence that runs has. */
  private static final class Held {
    final int known; // tokens, when it joined
    final int shares; // tokens at most that others may find
    int[] blocks;
    int full; // blocks whose content is computed, and can be found

    Held(int known, int shares, int[] blocks) {
      this.known = known;
      this.shares = shares;
      this.blocks = blocks;
    }
  }

  private final Sequences sequences;
  private final boolean pads;
  private final OptionalInt pass;
  private KvBlocks blocks;
  private int maxRunning;

  /** Whether the last that were admitted were not more because of their prompts alone. */
  private boolean filling;

  /** Places that nobody had, summed over the steps since somebody was last admitted. */
  private int idle;

  private final ArrayDeque<Integer> waiting = new ArrayDeque<>();
  private final List<Integer> running = new ArrayList<>(); // in the order in which they joined
  private final Map<Integer, Integer> tokens = new HashMap<>();
  private final Map<Integer, Held> held = new HashMap<>();
  private long tokensSpared;

  Scheduler(Limits limits, KvBlocks blocks, Sequences sequences) {
    this.sequences = sequences;
    this.blocks = blocks;
    this.pads = limits.pads;
    this.pass = limits.pass;
    this.maxRunning = limits.sequences;
  }

  /** A sequence waits, behind those that do. */
  void add(int sequence, int itsTokens) {
    if (tokens.putIfAbsent(sequence, itsTokens) != null) {
      throw new IllegalArgumentException("sequence " + sequence + " is there already");
    }
    waiting.addLast(sequence);
  }

  /** Keys and values of all tokens of a sequence that runs are computed: others may find them. */
  void computed(int sequence) {
    var its = held.get(sequence);
    int length = Math.min(tokens.get(sequence), its.shares);
    if ((its.full + 1) * blocks.size() <= length) {
      int[] all = sequences.tokens(sequence);
      while ((its.full + 1) * blocks.size() <= length) {
        blocks.fill(its.blocks, its.full++, sequences.routing(sequence), all);
      }
    }
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
    putBack(sequence);
    maxRunning = Math.max(1, running.size());
  }

  private void putBack(int sequence) {
    running.remove((Integer) sequence);
    blocks.give(held.remove(sequence).blocks);
    waiting.addFirst(sequence);
  }

  /**
   * From now on so many at once, with these blocks.
   *
   * @throws IllegalStateException while some run, who have others
   */
  void limit(int sequences, KvBlocks blocks) {
    if (!running.isEmpty()) {
      throw new IllegalStateException(running.size() + " sequences have blocks of before");
    }
    this.blocks = blocks;
    maxRunning = sequences;
  }

  /** Nobody waits any longer: those that did, and are wanted, are gone. */
  List<Integer> leaveAll() {
    var wanted = waiting.stream().filter(sequences::isWanted).toList();
    tokens.keySet().removeAll(waiting);
    waiting.clear();
    return wanted;
  }

  /** A sequence that runs has ended. */
  void remove(int sequence) {
    running.remove((Integer) sequence);
    blocks.give(held.remove(sequence).blocks);
    tokens.remove(sequence);
  }

  /** Whether more could have been admitted, but for the length of their prompts. */
  boolean isFilling() {
    return filling;
  }

  int waiting() {
    return waiting.size();
  }

  int running() {
    return running.size();
  }

  /**
   * The blocks of a sequence that runs, in order: for all its tokens, and for one more when it has
   * just joined. The same array as long as they are the same.
   */
  int[] blocks(int sequence) {
    return held.get(sequence).blocks;
  }

  /** How many of its first tokens were known when a sequence that runs joined: whole blocks. */
  int known(int sequence) {
    return held.get(sequence).known;
  }

  /** Blocks that those that run have. */
  int blocksHeld() {
    return blocks.taken();
  }

  /** Tokens so far that were known when somebody joined. */
  long tokensSpared() {
    return tokensSpared;
  }

  /**
   * Who is preempted and who is admitted now; they count as waiting and as running from now on.
   * Each that runs has blocks for its tokens then.
   *
   * @param prefillTokens of prompts that may join together now, padding included; a single sequence
   *     may have more; 0: none may join
   */
  Plan next(long prefillTokens) {
    var preempted = new ArrayList<Integer>();
    var admitted = new ArrayList<Integer>();
    var rejected = new ArrayList<Integer>();
    for (int i = 0; i < running.size(); i++) {
      int which = running.get(i);
      int needed = blocks.of(tokens.get(which));
      while (held.containsKey(which) && held.get(which).blocks.length < needed) {
        if (blocks.free() > 0) {
          append(held.get(which));
        } else if (running.size() > 1) {
          preempted.add(running.getLast()); // perhaps itself
          putBack(running.getLast());
        } else {
          rejected.add(which);
          remove(which);
        }
      }
    }
    if (prefillTokens > 0 && preempted.isEmpty() && hasRoom()) {
      admit(prefillTokens, admitted, rejected);
    }
    return new Plan(preempted, admitted, rejected);
  }

  private void append(Held to) {
    to.blocks = Arrays.copyOf(to.blocks, to.blocks.length + 1);
    to.blocks[to.blocks.length - 1] = blocks.take();
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

  /**
   * Where one group after the other joins, they are of like size: one that is left over would be
   * computed by itself, and be the last to end.
   */
  private long ofEachGroup(long prefillTokens) {
    var joining = new ArrayList<Integer>();
    long all = 0;
    for (int which : waiting) {
      if (joining.size() == maxRunning - running.size()) {
        break;
      }
      joining.add(tokens.get(which));
      all += joining.getLast();
    }
    if (pads || all <= prefillTokens) {
      return prefillTokens;
    }
    int groups = groups(joining, prefillTokens);
    long even = Math.min(prefillTokens, (all + groups - 1) / groups);
    return groups(joining, even) > groups ? prefillTokens : even;
  }

  private static int groups(List<Integer> joining, long limit) {
    int groups = 0;
    long sum = limit;
    for (int its : joining) {
      sum += its;
      if (sum > limit) {
        groups++;
        sum = its;
      }
    }
    return groups;
  }

  private int inPasses(int tokens) {
    return pass.isPresent() ? tokens / pass.getAsInt() * pass.getAsInt() : tokens;
  }

  private void admit(long prefillTokens, List<Integer> admitted, List<Integer> rejected) {
    long most = ofEachGroup(prefillTokens);
    filling = false;
    idle = 0;
    long width = 0;
    long sum = 0;
    while (!waiting.isEmpty() && running.size() < maxRunning) {
      int first = waiting.getFirst();
      boolean wanted = sequences.isWanted(first);
      int its = tokens.get(first);
      int needed = blocks.of(pass.isPresent() ? sequences.most(first) : its + 1);
      if (!wanted || needed > blocks.count()) {
        waiting.removeFirst();
        tokens.remove(first);
        if (wanted) {
          rejected.add(first);
        }
        continue;
      }
      // the last token is always computed: its logits are wanted
      int[] shared = blocks.find(sequences.routing(first), sequences.tokens(first), its - 1);
      int known = inPasses(shared.length * blocks.size());
      shared = Arrays.copyOf(shared, known / blocks.size());
      boolean ahead = sequences.goesAhead(first, known);
      // with padding a prefill is as wide as the one needs of which the least is known
      width = Math.max(width, its - known);
      sum += its - known;
      long computed = pads ? (admitted.size() + 1) * width : sum;
      if (!admitted.isEmpty() && (ahead || computed > most)) {
        filling = true;
        return;
      }
      // one more for each than is needed now: else it could be preempted at once
      int left = blocks.free() - blocks.unused(shared) - (needed - shared.length);
      if (left < (running.isEmpty() ? 0 : running.size() + 1)) {
        return;
      }
      blocks.share(shared);
      // answers are computed otherwise than prompts
      var has = new Held(known, pass.isPresent() ? inPasses(its) : Integer.MAX_VALUE, shared);
      while (has.blocks.length < needed) {
        append(has);
      }
      has.full = shared.length;
      held.put(first, has);
      tokensSpared += known;
      waiting.removeFirst();
      running.add(first);
      admitted.add(first);
      if (ahead) {
        filling = true;
        return;
      }
    }
  }
}
