package org.meteora;

import static com.tngtech.archunit.lang.syntax.ArchRuleDefinition.noClasses;
import static com.tngtech.archunit.library.Architectures.layeredArchitecture;
import static com.tngtech.archunit.library.dependencies.SlicesRuleDefinition.slices;
import static org.assertj.core.api.Assertions.assertThat;

import ai.djl.Device;
import ai.djl.ndarray.NDManager;
import com.tngtech.archunit.core.domain.JavaClasses;
import com.tngtech.archunit.core.importer.ClassFileImporter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;

/** The code is laid out as docs/architecture.md draws it. */
class ArchitectureTest {
  private static JavaClasses classes;

  @BeforeAll
  static void read() {
    var tests = ArchitectureTest.class.getProtectionDomain().getCodeSource().getLocation();
    classes =
        new ClassFileImporter()
            .withImportOption(location -> !location.contains(tests.getPath()))
            .importPackages("org.meteora");
    assertThat(classes.contain(UserException.class)).isTrue();
    assertThat(classes.size()).isGreaterThan(300);
  }

  @Test
  void noPackageDependsOnItselfByWayOfOthers() {
    slices().matching("org.meteora.(**)").should().beFreeOfCycles().check(classes);
  }

  /** DJL's natives are replaced where its engine is first asked for, in {@code Devices}. */
  @Test
  void theEngineIsReachedByWayOfDevices() {
    noClasses()
        .that()
        .doNotHaveFullyQualifiedName("org.meteora.tensor.Devices")
        .should()
        .callMethod(NDManager.class, "newBaseManager", Device.class, String.class)
        .orShould()
        .callMethod(NDManager.class, "newBaseManager", Device.class)
        .orShould()
        .callMethod(NDManager.class, "newBaseManager")
        .check(classes);
  }

  @Test
  void layersOfCoreAreAsDrawn() {
    layeredArchitecture()
        .consideringOnlyDependenciesInLayers()
        .layer("files")
        .definedBy("org.meteora.io..", "org.meteora.safetensors..", "org.meteora.lora..")
        .layer("layer")
        .definedBy("org.meteora.moe..")
        .layer("model")
        .definedBy("org.meteora.model..")
        .layer("router")
        .definedBy("org.meteora.router..")
        .layer("generate")
        .definedBy("org.meteora.generate..")
        .layer("driver")
        .definedBy("org.meteora.cuda.driver..")
        .layer("kernel")
        .definedBy("org.meteora.cuda.kernel..")
        .layer("decode")
        .definedBy("org.meteora.cuda.decode..")
        .layer("backend")
        .definedBy("org.meteora.backend..")
        .layer("checkpoint")
        .definedBy("org.meteora.checkpoint..")
        .whereLayer("layer")
        .mayOnlyBeAccessedByLayers("model", "router", "generate", "backend", "checkpoint")
        .whereLayer("model")
        .mayOnlyBeAccessedByLayers("router", "generate", "backend", "checkpoint")
        .whereLayer("router")
        .mayOnlyBeAccessedByLayers("checkpoint")
        .whereLayer("generate")
        .mayOnlyBeAccessedByLayers("backend", "checkpoint")
        .whereLayer("kernel")
        .mayOnlyBeAccessedByLayers("decode", "backend")
        .whereLayer("decode")
        .mayOnlyBeAccessedByLayers("backend")
        .whereLayer("backend")
        .mayOnlyBeAccessedByLayers("checkpoint")
        .whereLayer("checkpoint")
        .mayNotBeAccessedByAnyLayer()
        .check(classes);
  }

  /** Benchmarks and the doctor name devices; what joins processes chooses between MPI and NCCL. */
  @Test
  void noCodeOutsideTheBackendsAsksForADevice() {
    noClasses()
        .that()
        .resideOutsideOfPackages(
            "org.meteora.backend..",
            "org.meteora.cuda..",
            "org.meteora.tensor",
            "org.meteora.parallel",
            "org.meteora.cli")
        .should()
        .callMethod(Device.class, "isGpu")
        .orShould()
        .callMethod(Device.class, "getDeviceType")
        .orShould()
        .callMethod(Device.class, "getDeviceId")
        .orShould()
        .dependOnClassesThat()
        .resideInAPackage("org.meteora.cuda..")
        .check(classes);
  }

  @Test
  void theModelKnowsNoBackend() {
    noClasses()
        .that()
        .resideInAnyPackage("org.meteora.model..", "org.meteora.moe..", "org.meteora.generate..")
        .should()
        .dependOnClassesThat()
        .resideInAPackage("org.meteora.backend..")
        .check(classes);
  }

  @Test
  void kernelsAndDecodeStepsKnowNothingOfTheModelsBlocks() {
    noClasses()
        .that()
        .resideInAPackage("org.meteora.cuda..")
        .should()
        .dependOnClassesThat()
        .resideInAnyPackage(
            "org.meteora.model..",
            "org.meteora.moe..",
            "org.meteora.generate..",
            "org.meteora.backend..",
            "org.meteora.checkpoint..")
        .check(classes);
  }

  @Test
  void coreKnowsNothingOfTasksAndCommands() {
    noClasses()
        .that()
        .resideOutsideOfPackages(
            "org.meteora.data..", "org.meteora.train..", "org.meteora.eval..", "org.meteora.cli..")
        .should()
        .dependOnClassesThat()
        .resideInAnyPackage(
            "org.meteora.data..",
            "org.meteora.train..",
            "org.meteora.eval..",
            "org.meteora.cli..",
            "picocli..",
            "org.yaml..",
            "ch.qos.logback..")
        .check(classes);
  }

  @Test
  void trainingAndEvaluationDoNotKnowEachOther() {
    slices().matching("org.meteora.(train|eval)..").should().notDependOnEachOther().check(classes);
  }

  @Test
  void everyPackageSaysWhatItHolds() {
    var root = Path.of(System.getProperty("meteora.root", ".."));
    var packages = classes.stream().map(each -> each.getPackageName()).distinct().toList();
    for (var name : packages) {
      var file = "src/main/java/" + name.replace('.', '/') + "/package-info.java";
      assertThat(Stream.of("core", "data", "train", "eval", "cli"))
          .as(file)
          .anyMatch(module -> Files.exists(root.resolve("meteora-" + module).resolve(file)));
    }
  }
}
