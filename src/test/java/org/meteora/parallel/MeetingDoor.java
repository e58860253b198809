package org.meteora.parallel;

import java.io.ByteArrayOutputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.net.InetAddress;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.List;
import java.util.Optional;

/** Lets the fuzzing of messages between processes in, which is nobody else's business. */
public final class MeetingDoor {
  private static final String JOB = "job";

  private MeetingDoor() {}

  private static Launch launch(int rank) {
    return new Launch(
        rank,
        2,
        rank,
        Launch.Starter.TORCHRUN,
        Launch.Manager.NONE,
        Optional.of("127.0.0.1"),
        1,
        JOB);
  }

  /** What the second process sends: who it is, a sign of life, two texts, that it leaves. */
  public static byte[] message() {
    try {
      var bytes = new ByteArrayOutputStream();
      var out = new DataOutputStream(bytes);
      out.writeInt(0x4d455445);
      out.write(
          MessageDigest.getInstance("SHA-256")
              .digest((JOB + "/2").getBytes(StandardCharsets.UTF_8)));
      out.writeInt(1);
      for (var text : List.of("", "one", "two")) {
        out.writeByte(text.isEmpty() ? 1 : 0);
        out.writeInt(text.length());
        out.writeBytes(text);
      }
      out.writeByte(3);
      out.writeInt(0);
      return bytes.toByteArray();
    } catch (IOException | NoSuchAlgorithmException e) {
      throw new AssertionError(e);
    }
  }

  /** The first process hears this from a stranger, or from the second, which then leaves. */
  public static void hear(byte[] message) throws IOException {
    try (var meeting = Rendezvous.listen(0)) {
      Thread.ofVirtual()
          .start(
              () -> {
                for (var said : List.of(message, message())) {
                  try (var socket = new Socket(InetAddress.getLoopbackAddress(), meeting.port())) {
                    socket.getOutputStream().write(said);
                    socket.shutdownOutput();
                    if (socket.getInputStream().readNBytes(4)[0] != 0) {
                      socket.getInputStream().readAllBytes();
                      return;
                    }
                  } catch (IOException | IndexOutOfBoundsException e) {
                    // turned away
                  }
                }
              });
      try (var control = meeting.await(launch(0), lost -> {})) {
        control.gather(new byte[0]);
        control.gather(new byte[0]);
      }
    }
  }
}
