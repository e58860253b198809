package org.meteora.train.listener;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.Map;
import java.util.Set;
import java.util.function.Consumer;
import java.util.stream.Stream;
import java.util.zip.CRC32C;
import org.meteora.io.AtomicFiles;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * What {@link MetricsFile} has, as TensorBoard reads it: an event file in the run's folder, one for
 * each start. It says where it begins or goes on, and TensorBoard forgets what an earlier start
 * made beyond that.
 *
 * <p>The file is a sequence of records (a length, its checksum, the data, their checksum), each a
 * protobuf message {@code tensorflow.Event}; both formats are written here, since they are small
 * and no maintained library for the JVM has them without TensorFlow itself.
 */
public final class TensorBoardFile implements TrainingListener {
  private static final Logger LOG = LoggerFactory.getLogger(TensorBoardFile.class);

  private static final int VARINT = 0;
  private static final int FIXED64 = 1;
  private static final int BYTES = 2;
  private static final int FIXED32 = 5;

  /** {@code DataType.DT_STRING}. */
  private static final int STRING = 7;

  /** {@code SessionLog.SessionStatus.START}: events of this step and later ones are void. */
  private static final int START = 1;

  /** Metrics of a step that say how fast it was. */
  private static final Set<String> SPEED =
      Set.of("seconds", "tokens_per_second", "padding", "memory_bytes");

  private static final Set<String> NO_CURVES = Set.of("event", "step", "tokens");

  private final Path folder;
  private final Map<String, Object> settings;
  private Path file;
  private boolean failed;

  /** Bytes of the file's whole records. */
  private long written;

  /**
   * @param folder gets {@code events.out.tfevents.…}
   * @param settings of the run, shown as text
   */
  public TensorBoardFile(Path folder, Map<String, Object> settings) {
    this.folder = folder;
    this.settings = settings;
  }

  @Override
  public void onStart(long step, long steps) {
    long now = System.currentTimeMillis();
    file =
        folder.resolve(
            "events.out.tfevents.%010d.%d".formatted(now / 1000, ProcessHandle.current().pid()));
    append(event(0, it -> it.text(3, "brain.Event:2")));
    // a run that begins makes step 0's evaluation again, one that goes on does not
    append(event(step > 0 ? step + 1 : 0, it -> it.message(7, log -> log.number(1, START))));
    var table = new StringBuilder("| setting | value |\n| --- | --- |\n");
    settings.forEach((name, value) -> table.append("| %s | %s |\n".formatted(name, value)));
    append(
        event(step, it -> it.message(5, summary -> text(summary, "settings", table.toString()))));
  }

  @Override
  public void onStep(StepReport report) {
    write(report.step(), MetricsFile.node(report), "train");
  }

  @Override
  public void onEvaluation(long step, Evaluation evaluation) {
    write(step, MetricsFile.node(step, evaluation), "eval");
  }

  private void write(long step, ObjectNode metrics, String where) {
    metrics.remove(NO_CURVES);
    append(
        event(
            step,
            it ->
                it.message(
                    5,
                    summary ->
                        metrics
                            .properties()
                            .forEach(e -> add(summary, where, e.getKey(), e.getValue())))));
  }

  /** Adds a number, or one of each task. */
  private static void add(Message summary, String where, String name, JsonNode value) {
    var others = Stream.of("oracle", "base").filter(other -> name.startsWith(other + "_"));
    var group = others.findFirst().orElse(SPEED.contains(name) ? "speed" : where);
    var key = name.startsWith(group + "_") ? name.substring(group.length() + 1) : name;
    if (value.isNumber()) {
      scalar(summary, group + "/" + key, value);
    } else {
      var prefix = group + "_" + key.replace("_by_task", "/");
      value.properties().forEach(e -> scalar(summary, prefix + e.getKey(), e.getValue()));
    }
  }

  private static void scalar(Message summary, String tag, JsonNode value) {
    summary.message(1, one -> one.text(1, tag).float32(2, value.floatValue()));
  }

  /** A value that the plugin "text" shows. */
  private static void text(Message summary, String tag, String markdown) {
    summary.message(
        1,
        value ->
            value
                .text(1, tag + "/text_summary")
                .message(9, metadata -> metadata.message(1, plugin -> plugin.text(1, "text")))
                .message(
                    8,
                    tensor ->
                        tensor
                            .number(1, STRING)
                            .message(2, shape -> shape.message(2, dim -> dim.number(1, 1)))
                            .text(8, markdown)));
  }

  private static byte[] event(long step, Consumer<Message> content) {
    var event = new Message().float64(1, System.currentTimeMillis() / 1e3).number(2, step);
    content.accept(event);
    return event.bytes();
  }

  /** A protobuf message in the making: fields in the order of calls. */
  private static final class Message {
    private final ByteArrayOutputStream out = new ByteArrayOutputStream();

    private void varint(long value) {
      long rest = value;
      while ((rest & ~0x7fL) != 0) {
        out.write((int) (rest & 0x7f | 0x80));
        rest >>>= 7;
      }
      out.write((int) rest);
    }

    private void key(int field, int type) {
      varint((long) field << 3 | type);
    }

    Message number(int field, long value) {
      key(field, VARINT);
      varint(value);
      return this;
    }

    Message float32(int field, float value) {
      key(field, FIXED32);
      out.writeBytes(little(4).putFloat(value).array());
      return this;
    }

    Message float64(int field, double value) {
      key(field, FIXED64);
      out.writeBytes(little(8).putDouble(value).array());
      return this;
    }

    Message text(int field, String value) {
      return bytes(field, value.getBytes(StandardCharsets.UTF_8));
    }

    Message message(int field, Consumer<Message> content) {
      var inner = new Message();
      content.accept(inner);
      return bytes(field, inner.bytes());
    }

    private Message bytes(int field, byte[] value) {
      key(field, BYTES);
      varint(value.length);
      out.writeBytes(value);
      return this;
    }

    byte[] bytes() {
      return out.toByteArray();
    }
  }

  private static ByteBuffer little(int size) {
    return ByteBuffer.allocate(size).order(ByteOrder.LITTLE_ENDIAN);
  }

  /** The checksum of a record's parts, which TensorFlow masks. */
  private static int masked(byte[] data) {
    var crc = new CRC32C();
    crc.update(data);
    int value = (int) crc.getValue();
    return (value >>> 15 | value << 17) + 0xa282ead8;
  }

  private void append(byte[] event) {
    var length = little(8).putLong(event.length).array();
    var record =
        little(event.length + 16)
            .put(length)
            .putInt(masked(length))
            .put(event)
            .putInt(masked(event))
            .array();
    try (var channel =
        FileChannel.open(file, StandardOpenOption.CREATE, StandardOpenOption.WRITE)) {
      channel.truncate(written); // half a record, which a full disk left, would end the file
      var rest = ByteBuffer.wrap(record);
      channel.position(written);
      while (rest.hasRemaining()) {
        channel.write(rest);
      }
      written += record.length;
      failed = false;
    } catch (IOException e) {
      if (!failed) {
        LOG.warn("cannot write {}: {}; training goes on", file, AtomicFiles.reason(e));
      }
      failed = true;
    }
  }
}
